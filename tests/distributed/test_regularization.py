"""What disturbs a training is the same under every layout, and after a resume."""

from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of, write_tagged
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import LAYOUTS, base_of, here, reported  # noqa: F401 - a fixture

pytestmark = pytest.mark.distributed

NOISE = (
    "training.dropout=0.2",
    "training.embedding_dropout=0.1",
    "finetune.neftune=5.0",
    "finetune.validation=[]",
    "training.steps=3",
)


def plainly(ranks: RankPool, here: Path, name: str, family: str, *fields: str) -> dict[int, dict[str, float]]:  # noqa: F811
    run = RunDir(here / "runs" / f"{name}-{family}")
    if not run.steps():
        run = start(ranks, config_of(f"{name}-{family}", base_of(here, family)), *fields)
    return reported(run)


def check_same(found: dict[int, dict[str, float]], plain: dict[int, dict[str, float]], *names: str) -> None:
    assert found.keys() == plain.keys()
    for step in (1, 2, 3):
        for name in ("loss", "grad_norm", *names):
            assert found[step][name] == pytest.approx(plain[step][name], rel=1e-5, abs=1e-6), (step, name)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "tp2-sp"),
        ("bert", "cp2"),
        *[
            pytest.param(family, layout, marks=pytest.mark.full)
            for family in ("llama", "bert")
            for layout in LAYOUTS
            if (family, layout) not in (("llama", "tp2-sp"), ("bert", "cp2"))
        ],
    ],
)
def test_dropout_and_noise_are_those_of_one_process(ranks: RankPool, here: Path, family, layout) -> None:  # noqa: F811
    plain = plainly(ranks, here, "noisy", family, *NOISE)
    recomputing = ("parallel.activation_checkpointing=full", "training.micro_batch_size=2")
    run = start(
        ranks,
        config_of(f"noisy-{layout}-{family}", base_of(here, family)),
        *NOISE,
        *LAYOUTS[layout],
        *recomputing,
    )
    check_same(reported(run), plain, "cross_entropy")


def test_a_resumed_run_draws_what_one_run_draws(ranks: RankPool, here: Path) -> None:  # noqa: F811
    plain = plainly(ranks, here, "noisy", "llama", *NOISE)
    text = config_of("noisy-again", base_of(here, "llama"))
    start(ranks, text, *NOISE, "training.steps=2")
    again = start(ranks, text, *NOISE)
    assert reported(again)[3]["loss"] == plain[3]["loss"]
    first, second = (read_tensors(RunDir(here / "runs" / name).step(3)) for name in ("noisy-llama", "noisy-again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    still = plainly(ranks, here, "still", "llama", *NOISE[3:])
    assert still[1]["loss"] != pytest.approx(plain[1]["loss"], rel=1e-3), "the runs are disturbed"


ATTACKS = {
    "fgm": ("finetune.adversarial={epsilon: 0.5}",),
    "pgd": ("finetune.adversarial={method: pgd, epsilon: 0.5, steps: 2, step_size: 0.4, weight: 0.5}",),
}
ZERO2 = {"zero2-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=2")}
ADVERSARIAL = ("training.dropout=0.1", "finetune.validation=[]", "training.steps=3")


@pytest.mark.parametrize(
    ("attack", "family", "layout"),
    [
        ("pgd", "llama", "tp2-sp"),
        *[
            pytest.param(attack, family, layout, marks=pytest.mark.full)
            for attack in ATTACKS
            for family in ("llama", "bert")
            for layout in (*LAYOUTS, *ZERO2)
            if (attack, family, layout) != ("pgd", "llama", "tp2-sp") and (attack, layout) != ("pgd", "zero3-dp2")
        ],
    ],
)
def test_an_attack_is_that_of_one_process(ranks: RankPool, here: Path, attack, family, layout) -> None:  # noqa: F811
    fields = (*ADVERSARIAL, *ATTACKS[attack])
    plain = plainly(ranks, here, attack, family, *fields)
    assert plain[1]["adversarial_loss"] > plain[1]["loss"] + 0.01, "the perturbation is against the model"
    name = f"{attack}-{layout}-{family}"
    accumulating = ("training.micro_batch_size=1", "parallel.activation_checkpointing=selective")
    run = start(ranks, config_of(name, base_of(here, family)), *fields, *(LAYOUTS | ZERO2)[layout], *accumulating)
    check_same(reported(run), plain, "adversarial_loss")


@pytest.mark.full
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_an_attack_in_bf16_is_nearly_that_in_fp32(ranks: RankPool, here: Path, zero) -> None:  # noqa: F811
    fields = (*ADVERSARIAL, *ATTACKS["fgm"])
    plain = plainly(ranks, here, "fgm", "llama", *fields)
    layout = ("cluster.gpus_per_node=2", f"parallel.zero_stage={zero}", "training.precision=bf16")
    run = start(ranks, config_of(f"fgm-bf16-{zero}", base_of(here, "llama")), *fields, *layout)
    for step in (1, 2, 3):
        for name in ("loss", "adversarial_loss", "grad_norm"):
            assert reported(run)[step][name] == pytest.approx(plain[step][name], rel=0.05), (step, name)


TASKS = {
    "sequence": ("task={name: sequence_classification, label_smoothing: 0.1, class_weights: {bad: 2.0}}",),
    "tagged": ("task={name: token_classification}", "finetune.train=[tagged.jsonl]"),
}
R_DROP = ("training.dropout=0.2", "finetune.r_drop=4.0", "finetune.validation=[]", "training.steps=3")


@pytest.mark.parametrize(
    ("task", "family", "layout"),
    [
        ("tagged", "bert", "cp2"),
        *[
            pytest.param(task, family, layout, marks=pytest.mark.full)
            for task in TASKS
            for family in ("llama", "bert")
            for layout in LAYOUTS
            if (task, family, layout) != ("tagged", "bert", "cp2")
        ],
    ],
)
def test_two_passes_that_are_drawn_together_are_those_of_one_process(
    ranks: RankPool,
    here: Path,  # noqa: F811
    task,
    family,
    layout,
) -> None:
    if not (here / "tagged.jsonl").exists():
        write_tagged(here / "tagged.jsonl", 200, seed=1)
    fields = (*R_DROP, *TASKS[task])
    plain = plainly(ranks, here, f"r-drop-{task}", family, *fields)
    assert plain[1]["loss"] > plain[1]["divergence"] > 0
    name = f"r-drop-{task}-{layout}-{family}"
    run = start(ranks, config_of(name, base_of(here, family)), *fields, *LAYOUTS[layout], "training.micro_batch_size=2")
    check_same(reported(run), plain, "cross_entropy", "divergence")


TO_START = (
    "optimizer={name: adamw_l2sp, learning_rate: 3.0e-3, weight_decay: 5.0}",
    "finetune.validation=[]",
    "training.steps=3",
)


@pytest.mark.parametrize(
    "layout", ["zero3-dp2", *(pytest.param(one, marks=pytest.mark.full) for one in ("tp2", "cp2"))]
)
def test_decay_goes_toward_the_start_and_on_after_a_resume_by_another_layout(
    ranks: RankPool,
    here: Path,  # noqa: F811
    layout,
) -> None:
    plain = plainly(ranks, here, "to-start", "llama", *TO_START)
    text = config_of(f"to-start-{layout}", base_of(here, "llama"))
    run = start(ranks, text, *TO_START, *LAYOUTS[layout], "training.steps=2")
    base = start(ranks, config_of(f"base-{layout}", base_of(here, "llama")), *TO_START[1:2], *STILL)
    kept, began = read_tensors(run.step(2)), read_tensors(base.step(1), kind="weight")
    for name, tensor in began.items():
        assert torch.equal(kept[f"start.{name}"], tensor), name
    check_same(reported(start(ranks, text, *TO_START)), plain)


STILL = ("training.steps=1", "optimizer.learning_rate=1e-30")
