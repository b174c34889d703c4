"""Rows of packed pairs as batches, and as a stream for training."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatrain.data.examples.loader import ExampleLoader, batch_of
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import IGNORE_INDEX, Batch, without_targets
from megatrain.data.loading.loader import StepBatches

Reference = list[
    NDArray[np.float32]
]  # of each row: [pairs, 2], log-probabilities of the chosen and the rejected answer


@dataclass(frozen=True, slots=True)
class PreferenceBatch(Batch):
    """P pairs in rows. Each pair lies in one row, its two answers behind each other as documents."""

    # [B, S] int64: 2 · pair, and 1 more of the rejected answer, whose token a position predicts; -1: of none
    answers: Tensor | None = None
    reference: Tensor | None = None  # [P, 2] fp32


def preference_batch(rows: Sequence[PackedRow], reference: Sequence[NDArray[np.float32]]) -> PreferenceBatch:
    """
    Args:
        reference: of each row.
    """
    batch = batch_of(rows)
    answers = np.full(tuple(batch.labels.shape), -1, dtype=np.int64)
    number = 0
    for row, places in zip(rows, answers, strict=True):
        for begin, end in zip([0, *row.ends[:-1]], row.ends, strict=True):
            places[begin : end - 1] = number  # a position predicts the next one's token
            number += 1
    answers[batch.labels.numpy() == IGNORE_INDEX] = -1
    return _with(batch, torch.from_numpy(answers), torch.from_numpy(np.concatenate(reference)))


def empty_batch(sequence_length: int) -> PreferenceBatch:
    """For a rank that has run out of rows."""
    batch = without_targets(1, sequence_length, attend_across_documents=False)
    return _with(batch, torch.full_like(batch.labels, -1), torch.zeros(0, 2))


def _with(batch: Batch, answers: Tensor, reference: Tensor) -> PreferenceBatch:
    given: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return PreferenceBatch(**given, answers=answers, reference=reference)


def pairs_of(row: PackedRow) -> int:
    return len(row.ends) // 2


class PreferenceLoader(ExampleLoader):
    """As `ExampleLoader`; targets are pairs. Its state names the reference."""

    def __init__(self, rows: Sequence[PackedRow], reference: Reference, **options: Any) -> None:
        super().__init__(rows, **options)
        self._reference = reference
        self.expected: str | None = None  # the reference of the checkpoint that was loaded

    def next(self) -> StepBatches[Batch]:
        chosen, mine = self._advance()
        micro_batches = tuple(
            preference_batch([self._rows[chosen[i]] for i in one], [self._reference[chosen[i]] for i in one])
            for one in mine
        )
        return StepBatches(micro_batches, sum(pairs_of(self._rows[number]) for number in chosen))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "reference": reference_hash(self._reference)}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        changes = super().load_state_dict(state)
        self.expected = str(state.get("reference"))
        return changes


class PreferenceEvaluation:
    """All rows once, in their order, shared out over the data-parallel ranks; every rank yields as many batches."""

    def __init__(
        self, rows: Sequence[PackedRow], reference: Reference, *, micro_batch_size: int, data_rank: int, data_size: int
    ) -> None:
        self._rows, self._reference = rows, reference
        self._size, self._rank, self._ranks = micro_batch_size, data_rank, data_size

    def __iter__(self) -> Iterator[PreferenceBatch]:
        for mine in self.shares():
            if mine:
                yield preference_batch([self._rows[i] for i in mine], [self._reference[i] for i in mine])
            else:
                yield empty_batch(len(self._rows[0].is_target) - 1)

    def shares(self) -> Iterator[range]:
        """Numbers of the rows of each batch of this rank; of the last ones perhaps none."""
        for start in range(0, len(self._rows), self._size * self._ranks):
            first = start + self._rank * self._size
            yield range(min(first, len(self._rows)), min(first + self._size, len(self._rows)))


def reference_hash(reference: Reference) -> str:
    """16 hexadecimal digits."""
    found = hashlib.sha256()
    for row in reference:
        found.update(row.astype("<f4").tobytes())
    return found.hexdigest()[:16]
