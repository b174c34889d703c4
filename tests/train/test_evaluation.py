import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatrain.data.loading.batch import IGNORE_INDEX, Batch, without_targets
from megatrain.tasks.causal_lm import CausalLM
from megatrain.train.evaluation import evaluate


@dataclass
class UniformEngine:
    """Finds every token of a vocabulary of 50 equally likely."""

    device = torch.device("cpu")

    def __post_init__(self) -> None:
        self.mesh = SimpleNamespace(dp_cp_group=dist.group.WORLD)

    def evaluate(self, batch: Batch) -> dict[str, torch.Tensor]:
        targets = (batch.labels != IGNORE_INDEX).sum().double()
        return {"loss": math.log(50) * targets, "targets": targets}


def batch(*targets: int) -> Batch:
    """A row for each number, with that many labels."""
    made = without_targets(len(targets), 8, attend_across_documents=False)
    for row, count in enumerate(targets):
        made.labels[row, :count] = 1
    return made


def test_the_mean_is_over_tokens_and_not_over_batches(one_rank) -> None:
    class HalfSure(UniformEngine):
        def evaluate(self, batch: Batch) -> dict[str, torch.Tensor]:
            targets = (batch.labels != IGNORE_INDEX).sum().double()
            return {"loss": targets * (1.0 if targets == 1 else 3.0), "targets": targets}

    metrics = CausalLM().evaluation_metrics(evaluate(HalfSure(), [batch(1), batch(3, 4)])[0])
    loss = (1 * 1 + 7 * 3) / 8
    expected = {"validation_loss": loss, "validation_targets": 8, "perplexity": math.exp(loss)}
    assert metrics == pytest.approx(expected)


def test_rows_without_targets_count_for_nothing(one_rank) -> None:
    sums, own = evaluate(UniformEngine(), [batch(5, 0), batch(0), batch(8)])
    assert sums == own == {"loss": pytest.approx(13 * math.log(50)), "targets": 13}


def test_nothing_to_evaluate(one_rank) -> None:
    assert evaluate(UniformEngine(), []) == ({}, {})


def test_many_batches_lose_no_precision(one_rank) -> None:
    sums, _ = evaluate(UniformEngine(), [batch(8, 8, 8, 8)] * 3000)
    assert sums["loss"] / sums["targets"] == pytest.approx(math.log(50), rel=1e-6)
