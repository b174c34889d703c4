"""Preferences: loss and gradient by hand, the same under every layout, resumed bit for bit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported

pytestmark = pytest.mark.distributed

WORDS = ["the", "of", "and", "to", "in"]
TASK = (
    "task={name: preference, beta: 0.5}",
    "finetune.train=[preferred.jsonl]",
    "finetune.validation=[preferred-held-out.jsonl]",
    "finetune.sequence_length=48",
)
LAYOUTS = {
    "zero3": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
}


def write_preferred(file: Path, count: int) -> list[dict[str, str]]:
    rows = [
        {
            "prompt": " ".join(WORDS[(number + n) % 5] for n in range(1 + number % 4)),
            "chosen": f" {WORDS[number % 5]} fine" * (1 + number % 2),
            "rejected": f" {WORDS[number % 3]} fatal" * (1 + number % 3),
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def rows(here: Path) -> list[dict[str, str]]:
    write_preferred(here / "preferred-held-out.jsonl", 7)
    return write_preferred(here / "preferred.jsonl", 60)


@pytest.fixture
def plain(ranks: RankPool, here: Path, rows) -> RunDir:
    """Of one process."""
    run = RunDir(here / "runs" / "preferred")
    return run if run.steps() else start(ranks, config_of("preferred", base_of(here, "llama")), *TASK)


def answers_by_hand(base: str, rows: list[dict[str, str]]) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model of transformers, and its log-probabilities of the chosen and the rejected answers, one at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    end, sums = tokenizer.convert_tokens_to_ids("<|endoftext|>"), []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        for answer in (row["chosen"], row["rejected"]):
            ids = torch.tensor([[*tokenizer(row["prompt"] + answer)["input_ids"], end]])
            of_tokens = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums.append(of_tokens[len(prompt) - 1 :].sum())
    return model, torch.stack(sums).view(-1, 2)


def test_the_reference_by_hand(here: Path, rows, plain: RunDir) -> None:
    held_out = map(json.loads, (here / "preferred-held-out.jsonl").read_text().splitlines())
    with torch.no_grad():
        _, expected = answers_by_hand(base_of(here, "llama"), [*rows, *held_out])
    np.testing.assert_allclose(np.load(plain.path / "reference.npy"), expected.numpy(), rtol=2e-5)
    values = reported(plain)
    assert values[0]["validation_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert values[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert values[6]["validation_reward_margin"] > values[2]["validation_reward_margin"] > 0
    assert values[6]["validation_pairs"] == 7


def test_the_first_gradient_by_hand(ranks: RankPool, here: Path, rows) -> None:
    """TRL's loss of a global batch that holds all pairs."""
    (here / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    overrides = (
        "finetune.train=[few.jsonl]",
        "training.global_batch_size=2",
        "training.steps=1",
        "finetune.sequence_length=64",
    )
    run = start(
        ranks, config_of("preferred-few", base_of(here, "llama")), *TASK, "finetune.sequence_length=64", *overrides
    )
    model, sums = answers_by_hand(base_of(here, "llama"), rows[:3])
    reference = torch.from_numpy(np.load(run.path / "reference.npy"))[:3]
    logits = (sums[:, 0] - sums[:, 1]) - (reference[:, 0] - reference[:, 1])
    (-F.logsigmoid(0.5 * logits)).mean().backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    assert reported(run)[1]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("layout", ["zero3", pytest.param("tp2", marks=pytest.mark.full)])
def test_losses_of_one_process(ranks: RankPool, here: Path, plain: RunDir, layout) -> None:
    run = start(ranks, config_of(f"preferred-{layout}", base_of(here, "llama")), *TASK, *LAYOUTS[layout])
    found, values = reported(run), reported(plain)
    np.testing.assert_allclose(np.load(run.path / "reference.npy"), np.load(plain.path / "reference.npy"), rtol=1e-5)
    assert values.keys() == found.keys()
    for step, of_step in values.items():
        names = ["loss", "reward_margin", "reward_accuracy", "grad_norm"] if step else []
        names += ["validation_loss", "validation_reward_margin", "validation_pairs"] if step % 2 == 0 else []
        for name in names:
            assert found[step][name] == pytest.approx(of_step[name], rel=1e-5, abs=2e-6), (step, name)


def test_resumed_bit_for_bit(ranks: RankPool, here: Path, plain: RunDir) -> None:
    text = config_of("preferred-resumed", base_of(here, "llama"))
    run = start(ranks, text, *TASK, "training.steps=3")
    before = (run.path / "reference.npy").stat().st_mtime_ns
    start(ranks, text, *TASK)
    found, values = reported(run), reported(plain)
    assert (run.path / "reference.npy").stat().st_mtime_ns == before, "computed once"
    for step in (4, 5, 6):
        for name in ("loss", "reward_margin", "grad_norm"):
            assert found[step][name] == values[step][name], (step, name)


@pytest.mark.full
@pytest.mark.parametrize("loss", ["ipo", "orpo"])
def test_the_other_losses_go_down(ranks: RankPool, here: Path, rows, loss) -> None:
    task = f"task={{name: preference, loss: {loss}}}"
    run = start(ranks, config_of(f"preferred-{loss}", base_of(here, "llama")), *TASK, task)
    values = reported(run)
    assert values[6]["validation_loss"] < values[0]["validation_loss"]
    assert (run.path / "reference.npy").exists() == (loss == "ipo")
