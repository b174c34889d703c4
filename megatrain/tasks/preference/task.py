"""One rank's batches of preferences, their loss, and the log-probabilities of the model that training starts from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss
from megatrain.tasks.base import DataShare, Loader, LossSums, Model, Start
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.preference.batch import (
    PreferenceBatch,
    PreferenceEvaluation,
    PreferenceLoader,
    Reference,
    pairs_of,
)
from megatrain.tasks.preference.reference import read_reference, write_reference
from megatrain.tasks.preference.section import PreferenceSection

_BY_TOKEN = LossTerms(by_token=True)

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


class Preference(ExampleTask):
    """Its reference is computed once, before the first step, and kept in the run's folder."""

    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        self._section = cast(PreferenceSection, config.task)
        self._loss = load_object(f"megatrain.tasks.preference.{self._section.loss}:loss")
        self._rows = [self._training.rows, *self.held_out.values()]
        self._references = [_nothing(rows) for rows in self._rows]
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

    def begin(self, start: Start) -> None:
        if not self._section.needs_reference:
            return
        assert self._loader is not None, "made before"
        if start.resumed:
            read_reference(start.folder, self._references, expected=self._loader.expected)
            return
        for rows, reference in zip(self._rows, self._references, strict=True):
            self._fill(rows, reference, start)
        if start.is_main:
            write_reference(start.folder, self._references)

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

    def _fill(self, rows: Sequence[PackedRow], reference: Reference, start: Start) -> None:
        """Replace the values of `reference` by the model's. Collective: each rank computes its share."""
        batches = self._batches(rows, reference, start.share)
        pairs = [pairs_of(row) for row in rows]
        begins = np.cumsum([0, *pairs])
        found = torch.zeros(int(begins[-1]), 2)
        for mine, batch in zip(batches.shares(), batches, strict=True):
            values = start.compute(lambda model, one: log_probabilities(model, one)[0], batch)
            if mine:
                found[begins[mine.start] : begins[mine.stop]] = values.cpu()
        whole = start.sum_over_data(found).numpy()
        for number, row in enumerate(reference):
            row[:] = whole[begins[number] : begins[number + 1]]

    def _batches(self, rows: Sequence[PackedRow], reference: Reference, share: DataShare) -> PreferenceEvaluation:
        size = self._config.training.micro_batch_size
        return PreferenceEvaluation(rows, reference, micro_batch_size=size, data_rank=share.rank, data_size=share.size)


def log_probabilities(model: Model, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Of the chosen and the rejected answer of each pair, fp32 [P, 2]; and how many tokens they have, fp32 [P, 2]."""
    assert batch.answers is not None, "a batch of pairs has them"
    assert batch.reference is not None, "a batch of pairs has one"
    places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    losses_BS = model(batch.input_ids, batch.labels, **places, terms=_BY_TOKEN)
    numbers = torch.arange(2 * batch.reference.shape[0], device=losses_BS.device)
    is_of = batch.answers.flatten() == numbers[:, None]  # [2 P, B · S]: sums in one order, so that a resume is exact
    sums = -(losses_BS.flatten() * is_of).sum(-1)
    return sums.view(-1, 2), is_of.sum(-1).float().view(-1, 2)


def _nothing(rows: Sequence[PackedRow]) -> Reference:
    return [np.zeros((pairs_of(row), 2), dtype=np.float32) for row in rows]
