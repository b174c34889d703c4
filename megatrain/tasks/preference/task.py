"""One rank's batches of pairs of answers, and their loss."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss
from megatrain.tasks.base import DataShare, Loader, LossSums, Model, Start
from megatrain.tasks.preference.batch import (
    PreferenceBatch,
    PreferenceEvaluation,
    PreferenceLoader,
    Reference,
    pairs_of,
)
from megatrain.tasks.preference.referenced import ReferencedTask, answer_log_probabilities

for _name, _unit, _format, _console in (
    ("reward_margin", "reward of the chosen answer less that of the rejected one", "{:.3f}", "margin {value}"),
    ("reward_accuracy", "share of pairs whose chosen answer has the higher reward", "{:.1%}", "accuracy {value}"),
):
    METRICS.register(
        _name,
        Metric(
            unit=_unit,
            tag=f"train/{_name}",
            format=_format.format,
            console=_console,
            over_steps="mean",
            over_ranks="sum",
        ),
    )
    METRICS.register(
        f"validation_{_name}",
        Metric(unit=f"{_unit}, of an evaluation", tag=f"validation/{_name}", format=_format.format, console=_console),
    )
METRICS.register(
    "validation_pairs",
    Metric(unit="pairs of an evaluation", tag=None, format="{:,.0f}".format, console="({value} pairs)"),
)


class Preference(ReferencedTask):
    """Pairs of a chosen and a rejected answer."""

    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        self._loss = load_object(f"megatrain.tasks.preference.{self._section.loss}:loss")
        self._loader: PreferenceLoader | None = None

    def loader(self, share: DataShare) -> Loader[Batch]:
        self._loader = PreferenceLoader(
            self._training.rows,
            self._references[0],
            global_batch_size=self._config.training.batch_sizes,
            micro_batch_size=self._config.training.micro_batch_size,
            data_rank=share.rank,
            data_size=share.size,
            seed=self._config.run.seed,
        )
        return self._loader

    def validation(self, share: DataShare) -> Mapping[str, Iterable[Batch]]:
        pairs = zip(self._rows[1:], self._references[1:], strict=True)
        return {
            name: self._batches(rows, reference, share)
            for name, (rows, reference) in zip(self.held_out, pairs, strict=True)
        }

    @staticmethod
    def items_of(row: PackedRow) -> int:
        return pairs_of(row)

    def _expected(self) -> str | None:
        assert self._loader is not None, "made before"
        return self._loader.expected

    def references_of(self, number: int, start: Start) -> Tensor:
        rows = self._rows[number]
        batches = self._batches(rows, self._references[number], start.share)
        begins = np.cumsum([0, *map(pairs_of, rows)])
        found = torch.zeros(int(begins[-1]), 2)
        for mine, batch in zip(batches.shares(), batches, strict=True):
            values = start.compute(lambda model, one: log_probabilities(model, one)[0], batch)
            if mine:
                found[begins[mine.start] : begins[mine.stop]] = values.cpu()
        return found

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Of each pair, summed."""
        loss, margin, right = self._of_pairs(model, batch)
        return LossSums(loss, {"reward_margin": margin.detach(), "reward_accuracy": right})

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        loss, margin, right = self._of_pairs(model, batch)
        pairs = torch.tensor(float(cast(Tensor, cast(PreferenceBatch, batch).reference).shape[0]), device=loss.device)
        return {"loss": loss, "margin": margin, "right": right, "pairs": pairs}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        pairs = max(sums["pairs"], 1.0)
        return {
            "validation_loss": sums["loss"] / pairs,
            "validation_reward_margin": sums["margin"] / pairs,
            "validation_reward_accuracy": sums["right"] / pairs,
            "validation_pairs": sums["pairs"],
        }

    def _of_pairs(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the loss, of the margin, and of the pairs whose chosen answer has the higher reward; fp32 []."""
        assert isinstance(batch, PreferenceBatch)
        policy_P2, tokens_P2 = log_probabilities(model, batch)
        loss_P, rewards_P2 = self._loss(policy_P2, batch.reference, tokens_P2, self._section)
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        return loss_P.sum(), margin_P.sum(), (margin_P > 0).float().sum()

    def _batches(self, rows: Sequence[PackedRow], reference: Reference, share: DataShare) -> PreferenceEvaluation:
        size = self._config.training.micro_batch_size
        return PreferenceEvaluation(rows, reference, micro_batch_size=size, data_rank=share.rank, data_size=share.size)


def log_probabilities(model: Model, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Of the chosen and the rejected answer of each pair, fp32 [P, 2]; and how many tokens they have, fp32 [P, 2]."""
    assert batch.answers is not None, "a batch of pairs has them"
    assert batch.reference is not None, "a batch of pairs has one"
    sums, tokens = answer_log_probabilities(model, batch, batch.answers, 2 * batch.reference.shape[0])
    return sums.view(-1, 2), tokens.view(-1, 2)
