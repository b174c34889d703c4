"""What passes the preflight starts: random runs, as odd as a file may say, trained by the real trainer on gloo ranks.

Each is started, then started again with another length, layout and batch, then fine-tuned, every other one from what it
was exported to. MEGATRAIN_STARTS=300 tries more of them.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.preflight import checks
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import MegatrainError
from megatrain.config.file import load_config, parse_config
from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from tests.distributed.ranks import RankPool, free_port
from tests.distributed.runs import one_start

pytestmark = pytest.mark.distributed

STARTS = int(os.environ.get("MEGATRAIN_STARTS", "16"))
FIRST = 6  # of them are in `make test`
BASE = """
tokenizer: {path: tokenizer}
data: {train: [{path: a}, {path: b}], validation: [{path: b}]}
checkpoint: {interval_steps: 2}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""
FINETUNE = """
finetune: {train: [pairs.jsonl], validation: [pairs.jsonl]}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""
MODEL: dict[str, list[Any]] = {
    "model.num_hidden_layers": [1, 2, 3],
    "model.hidden_size": [8, 24, 36, 64, 72],
    "model.num_attention_heads": [1, 2, 3, 4, 6],
    "model.num_key_value_heads": ["null", 1, 2, 3],
    "model.head_dim": ["null", 2, 6, 10],
    "model.intermediate_size": [1, 2, 7, 44, 130],
    "model.vocab_size": ["auto", "auto", 300, 301, 510],
    "model.tie_word_embeddings": ["true", "false"],
    "model.rms_norm_eps": ["1e-12", "0.1"],
    "data.sequence_length": [1, 2, 15, 40, 240, 7],
    "data.attend_across_documents": ["true", "false"],
    "data.shuffle.mode": ["windowed", "full"],
    "data.shuffle.streams": [1, 3, 4096],
    "data.train.1.weight": [0, 1, "1e-9"],
    "data.phases": ["[]", "[]", "[{from_sample: 3, weights: [0, 1]}]", "[{from_sample: 0, sequence_length: 1}]"],
    "optimizer.name": ["adamw", "muon"],
}
START: dict[str, list[Any]] = {
    "training.global_batch_size": [1, 2, 4, 6, 12],
    "training.micro_batch_size": ["auto", "auto", 1, 2, 3],
    "training.precision": ["bf16", "fp32"],
    "optimizer.learning_rate": ["1e-9", "6e-4", "1e-2"],
    "optimizer.betas": ["[0.0, 0.0]", "[0.9, 0.999]"],
    "optimizer.eps": ["1e-20", "1.0"],
    "optimizer.weight_decay": [0, 10],
    "optimizer.gradient_clipping": [0, "1e-6", 1],
    "schedule.name": ["cosine", "linear", "constant", "wsd"],
    "schedule.warmup_steps": [0, 1, 2],
    "schedule.min_lr_ratio": [0, 1],
    "evaluation.interval_steps": [1, 3],
    "evaluation.sequences": [1, 5],
    "checkpoint.keep_last": [1, 2],
    "parallel.tensor_parallel": ["auto", 1, 2],
    "parallel.context_parallel": ["auto", 1, 1, 2],
    "parallel.zero_stage": ["auto", 0, 1, 2, 3],
    "parallel.sequence_parallel": ["auto", "true", "false"],
    "parallel.activation_checkpointing": ["auto", "none", "selective", "full"],
    "parallel.compile": ["false"],  # nothing that a start could fail of, and seconds each
    "cluster.gpus_per_node": [1, 2, 4],
}


SIZES = {
    "data.sequence_length": 15,
    "training.global_batch_size": 4,
    "training.precision": "fp32",
    "parallel.tensor_parallel": 1,
    "parallel.context_parallel": 1,
    "cluster.gpus_per_node": 2,
}


def picked(chance: random.Random, *choices: dict[str, list[Any]]) -> list[str]:
    return [f"{field}={chance.choice(values)}" for choice in choices for field, values in choice.items()]


def passing(text: str, overrides: Iterator[list[str]]) -> tuple[RunDir, int]:
    """The folder of the first run that passes the preflight, and its ranks."""
    for given in overrides:
        try:
            found = checks.examine(parse_config(text, overrides=given))
            report = found.demand()
            run = prepare_run(found.config, report.chosen)
        except MegatrainError:
            continue
        return run, report.chosen.world_size
    raise AssertionError("the source of runs never ends")


def start(ranks: RankPool, found: tuple[RunDir, int]) -> list[float]:
    """Train it to its end; the losses it reported."""
    run, world_size = found
    config = load_config(run.config)
    ranks.run(world_size, one_start, str(Path.cwd()), str(run), free_port())
    assert run.steps()[-1] == config.total_steps
    return [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines() if '"loss"' in line]


@pytest.mark.parametrize(
    "number", [*range(FIRST), *(pytest.param(number, marks=pytest.mark.full) for number in range(FIRST, STARTS))]
)
def test_what_passes_the_preflight_starts(ranks: RankPool, here: Path, number: int) -> None:
    chance = random.Random(number)
    name = f"run.name=odd-{number}"

    def first() -> Iterator[list[str]]:
        while True:
            yield [name, "training.steps=2", *picked(chance, MODEL, START)]

    begun = passing(BASE, first())
    fixed = yaml_of(begun[0])

    def again() -> Iterator[list[str]]:
        while True:
            yield ["training.steps=3", *picked(chance, START)]

    losses = start(ranks, begun) + start(ranks, passing(fixed, again()))
    assert len(losses) >= 3

    base = str(begun[0])
    if number % 2:
        base = str(export(begun[0].path, Path(f"exported-{number}"), dtype="float32").folder)

    def tuned() -> Iterator[list[str]]:
        while True:
            length = f"finetune.sequence_length={chance.choice(['null', 30, 64])}"
            fixed = [f"run.name=tuned-{number}", "training.steps=2", f"finetune.base={base}", length]
            yield [*fixed, *picked(chance, START)]

    losses += start(ranks, passing(FINETUNE, tuned()))
    assert torch.tensor(losses).isfinite().all(), losses


def test_terms_of_the_loss_are_reported_beside_the_cross_entropy(ranks: RankPool, here: Path) -> None:
    """On two ranks, each of which has a half of it."""

    def reports(name: str, *task: str) -> list[dict[str, Any]]:
        fields = [f"{field}={values[0]}" for field, values in (MODEL | START).items() if field not in SIZES]
        sizes = [f"{field}={value}" for field, value in SIZES.items()]
        found = passing(BASE, iter([[f"run.name={name}", "training.steps=2", *fields, *sizes, *task]]))
        assert found[1] == 2
        start(ranks, found)
        return [json.loads(line) for line in found[0].metrics.read_text().splitlines() if '"loss"' in line]

    plain, smooth = reports("plain"), reports("smooth", "task.z_loss=0.01", "task.label_smoothing=0.1")
    assert "cross_entropy" not in plain[0]
    assert smooth[0]["cross_entropy"] == pytest.approx(plain[0]["loss"], rel=1e-6), "from the same weights"
    assert smooth[0]["loss"] > smooth[0]["cross_entropy"] + 0.1


def yaml_of(run: RunDir) -> str:
    return run.config.read_text(encoding="utf-8")


def test_without_zero_deepspeed_has_no_fp32_sums(ranks: RankPool) -> None:
    """Why the configuration's writer leaves `grad_accum_dtype` out there (launcher/deepspeed_config.py)."""
    with pytest.raises(AssertionError, match=r"NotImplementedError|grad_accum|Bfloat16"):
        ranks.run(1, _unpartitioned_with_fp32_sums)


def _unpartitioned_with_fp32_sums() -> None:
    import deepspeed
    import torch

    model = torch.nn.Linear(4, 4)
    settings = {
        "train_batch_size": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 0},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=settings)
