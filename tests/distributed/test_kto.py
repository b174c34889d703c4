"""KTO: losses, divergence and gradient by hand, the same under every layout, resumed bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported
from tests.distributed.test_preference import LAYOUTS, WORDS

pytestmark = pytest.mark.distributed

TASK = (
    "task={name: preference, loss: kto, beta: 0.5, undesirable_weight: 0.8}",
    "finetune.train=[rated.jsonl]",
    "finetune.validation=[rated-held-out.jsonl]",
    "training.steps=4",
)
OF_TRAINING = ("loss", "reward_desirable", "reward_undesirable", "reward_margin", "kl", "grad_norm")
OF_EVALUATION = tuple(f"validation_{name}" for name in ("loss", "reward_desirable", "reward_margin", "kl", "answers"))


def write_rated(file: Path, count: int) -> list[dict[str, object]]:
    rows = [
        {
            "prompt": " ".join(WORDS[(number + n) % 5] for n in range(1 + number % 4)),
            "completion": f" {WORDS[number % 5]} {'fine' if number % 3 else 'fatal'}" * (1 + number % 3),
            "label": bool(number % 3),
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def rows(here: Path) -> list[dict[str, object]]:
    write_rated(here / "rated-held-out.jsonl", 7)
    return write_rated(here / "rated.jsonl", 60)


@pytest.fixture
def plain(ranks: RankPool, here: Path, rows) -> RunDir:
    """Of one process."""
    run = RunDir(here / "runs" / "rated")
    return run if run.steps() else start(ranks, config_of("rated", base_of(here, "llama")), *TASK)


def test_the_loss_goes_down(plain: RunDir) -> None:
    values = reported(plain)
    assert values[0]["validation_kl"] == pytest.approx(0, abs=1e-6)
    assert values[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert values[4]["kl"] > 0
    assert values[4]["validation_loss"] < values[2]["validation_loss"] < values[0]["validation_loss"]
    assert values[4]["validation_reward_margin"] > values[2]["validation_reward_margin"] > 0
    assert values[4]["validation_answers"] == 7


def assert_equal(found: RunDir, plain: RunDir) -> None:
    there, values = reported(found), reported(plain)
    assert there.keys() == values.keys()
    for step, of_step in values.items():
        names = (*(OF_TRAINING if step else ()), *(OF_EVALUATION if step % 2 == 0 else ()))
        for name in names:
            assert there[step][name] == pytest.approx(of_step[name], rel=1e-5, abs=3e-6), (step, name)


@pytest.mark.parametrize("layout", ["zero3", pytest.param("tp2", marks=pytest.mark.full)])
def test_losses_of_one_process(ranks: RankPool, here: Path, plain: RunDir, layout) -> None:
    run = start(ranks, config_of(f"rated-{layout}", base_of(here, "llama")), *TASK, *LAYOUTS[layout])
    np.testing.assert_allclose(np.load(run.path / "reference.npy"), np.load(plain.path / "reference.npy"), rtol=1e-5)
    assert_equal(run, plain)


def test_micro_batches_change_nothing_and_a_resume_is_exact(ranks: RankPool, here: Path, plain: RunDir) -> None:
    """The divergence is of the global batch, not of its parts."""
    text = config_of("rated-micro", base_of(here, "llama"))
    run = start(ranks, text, *TASK, "training.micro_batch_size=1")
    assert_equal(run, plain)
    text = config_of("rated-resumed", base_of(here, "llama"))
    start(ranks, text, *TASK, "training.steps=3")
    found, values = reported(start(ranks, text, *TASK)), reported(plain)
    assert [found[4][name] for name in OF_TRAINING] == [values[4][name] for name in OF_TRAINING]


def test_steps_by_hand(ranks: RankPool, here: Path, rows) -> None:
    """Three steps of transformers' model and torch's AdamW, one answer at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    few = rows[:4]
    (here / "few-rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    overrides = (
        "finetune.train=[few-rated.jsonl]",
        "training.global_batch_size=1",
        "training.steps=3",
        "finetune.sequence_length=64",
        "evaluation.interval_steps=9",
        "optimizer={weight_decay: 0.0, gradient_clipping: 1000.0, learning_rate: 3.0e-3, betas: [0.9, 0.95]}",
    )
    run = start(ranks, config_of("rated-few", base_of(here, "llama")), *TASK, *overrides)
    base = base_of(here, "llama")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        AutoTokenizer.from_pretrained(base),
    )
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in few]
    answers = [
        [*tokenizer(row["prompt"] + row["completion"])["input_ids"], end][len(prompt) :]
        for row, prompt in zip(few, prompts, strict=True)
    ]

    def log_probabilities(shift: int) -> torch.Tensor:
        sums = []
        for number, prompt in enumerate(prompts):
            answer = answers[number - shift]
            ids = torch.tensor([[*prompt, *answer]])
            of_tokens = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums.append(of_tokens[len(prompt) - 1 :].sum())
        return torch.stack(sums)

    desirable = torch.tensor([bool(row["label"]) for row in few])
    with torch.no_grad():
        reference, reference_kl = log_probabilities(0), log_probabilities(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    values = reported(run)
    for step in (1, 2, 3):
        with torch.no_grad():
            kl = (log_probabilities(1) - reference_kl).mean().clamp(min=0)
        ratios = log_probabilities(0) - reference
        good, bad = 1 - torch.sigmoid(0.5 * (ratios - kl)), 0.8 * (1 - torch.sigmoid(0.5 * (kl - ratios)))
        loss = torch.where(desirable, good, bad).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
        assert values[step]["loss"] == pytest.approx(loss.item(), abs=1e-5), step
        assert values[step]["kl"] == pytest.approx(float(kl), abs=2e-5), step
        assert values[step]["grad_norm"] == pytest.approx(float(norm), rel=1e-4), step
