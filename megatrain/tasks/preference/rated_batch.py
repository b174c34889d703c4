"""Rows of rated answers as batches, and as a stream for training; beside them the answers to other prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatrain.data.examples.loader import batch_of
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import IGNORE_INDEX, Batch, without_targets
from megatrain.data.loading.loader import StepBatches
from megatrain.tasks.preference.batch import PreferenceLoader, Reference

MISMATCHED = -1.0  # in place of a rating


@dataclass(frozen=True, slots=True)
class RatedBatch(Batch):
    """N answers in rows, each a document."""

    answers: Tensor | None = None  # [B, S] int64: the answer whose token a position predicts; -1: of none
    reference: Tensor | None = None  # [N] fp32
    ratings: Tensor | None = None  # [N] fp32: 1 of desirable answers, 0 of others, MISMATCHED
    shares: Tensor | None = None  # [2] fp32: answers of the global batch over those that are desirable, or are not


def rated_batch(
    rows: Sequence[PackedRow], reference: Sequence[NDArray[np.float32]], *, shares: tuple[float, float] = (0.0, 0.0)
) -> RatedBatch:
    """
    Args:
        rows: that have no ratings hold answers to other prompts.
        reference: of each row, [answers].
    """
    batch = batch_of([replace(row, values=None) for row in rows])
    answers = np.full(tuple(batch.labels.shape), -1, dtype=np.int64)
    number = 0
    for row, places in zip(rows, answers, strict=True):
        for begin, end in zip([0, *row.ends[:-1]], row.ends, strict=True):
            places[begin : end - 1] = number  # a position predicts the next one's token
            number += 1
    answers[batch.labels.numpy() == IGNORE_INDEX] = -1
    ratings = [ratings_of(row) if row.values is not None else np.full(len(row.ends), MISMATCHED) for row in rows]
    return RatedBatch(
        **_fields(batch),
        answers=torch.from_numpy(answers),
        reference=torch.from_numpy(np.concatenate(reference)),
        ratings=torch.from_numpy(np.concatenate(ratings)).float(),
        shares=torch.tensor(shares),
    )


def empty_batch(sequence_length: int) -> RatedBatch:
    """For a rank that has run out of rows."""
    batch = without_targets(1, sequence_length, attend_across_documents=False)
    nothing, none = torch.full_like(batch.labels, -1), torch.zeros(0)
    return RatedBatch(**_fields(batch), answers=nothing, reference=none, ratings=none, shares=torch.zeros(2))


def ratings_of(row: PackedRow) -> NDArray[np.float32]:
    """[answers]"""
    assert row.values is not None, "each answer has a rating"
    return row.values[:, 0]


class RatedLoader(PreferenceLoader):
    """Targets are answers.

    Args:
        beside: of each row, its answers in front of other prompts.

    Attributes:
        mismatched: this rank's batches of such answers, of the newest global batch.
    """

    def __init__(
        self, rows: Sequence[PackedRow], beside: Sequence[PackedRow], reference: Reference, **options: Any
    ) -> None:
        super().__init__(rows, reference, **options)
        self._beside = beside
        self.mismatched: list[RatedBatch] = []

    def next(self) -> StepBatches[Batch]:
        chosen, of_mine = self._advance()
        total = sum(len(self._rows[number].ends) for number in chosen)
        desirable = sum(float(ratings_of(self._rows[number]).sum()) for number in chosen)
        shares = total / desirable if desirable else 0.0, total / (total - desirable) if total > desirable else 0.0
        micro_batches, self.mismatched = [], []
        for mine in of_mine:
            numbers = [chosen[index] for index in mine]
            of_rows = [self._reference[number] for number in numbers]
            micro_batches.append(
                rated_batch([self._rows[n] for n in numbers], [one[:, 0] for one in of_rows], shares=shares)
            )
            self.mismatched.append(rated_batch([self._beside[n] for n in numbers], [one[:, 1] for one in of_rows]))
        return StepBatches(tuple(micro_batches), total)


class RatedEvaluation:
    """All rows once, then all answers to other prompts; shared out over the data-parallel ranks, of which every one
    yields as many batches."""

    def __init__(
        self,
        rows: Sequence[PackedRow],
        beside: Sequence[PackedRow],
        reference: Reference,
        *,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
    ) -> None:
        self._parts = (rows, beside)
        self._reference = reference
        self._size, self._rank, self._ranks = micro_batch_size, data_rank, data_size

    def __iter__(self) -> Iterator[RatedBatch]:
        for column in range(len(self._parts)):
            for _, batch in self.of(column):
                yield batch

    def of(self, column: int) -> Iterator[tuple[range, RatedBatch]]:
        """Batches of the rows (column 0), or of what lies beside them (1), each with its rows' numbers."""
        rows = self._parts[column]
        for start in range(0, len(rows), self._size * self._ranks):
            first = start + self._rank * self._size
            mine = range(min(first, len(rows)), min(first + self._size, len(rows)))
            if mine:
                yield mine, rated_batch([rows[i] for i in mine], [self._reference[i][:, column] for i in mine])
            else:
                yield mine, empty_batch(len(rows[0].is_target) - 1)


def _fields(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}
