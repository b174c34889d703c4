"""Packed examples as a stream for the training loop: like pretraining, a pure function of the position."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from megatrain.base.batch_sizes import BatchSizes
from megatrain.data.examples.identity import check_same_examples, identity
from megatrain.data.examples.packing import PackedRow
from megatrain.data.loading.batch import IGNORE_INDEX, Batch, Row, assemble, without_targets
from megatrain.data.loading.loader import StepBatches
from megatrain.data.loading.shares import RankShare
from megatrain.data.ordering.permutation import key, permute


class ExampleLoader:
    """Rows in another order each epoch, the same on every rank and for any number of ranks.

    Args:
        weight_of: what a row adds to the number that the loss of a global batch is divided by.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        rows: Sequence[PackedRow],
        *,
        global_batch_size: int | BatchSizes,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        seed: int,
        weight_of: Callable[[PackedRow], float] = lambda row: row.targets,
    ) -> None:
        self._share = RankShare(
            global_batch_size, micro_batch_size=micro_batch_size, data_rank=data_rank, data_size=data_size
        )
        self._rows = rows
        self._seed = seed
        self._weight_of = weight_of
        self._identity = identity(rows, seed)
        self._position = 0
        self.wait_seconds = 0.0  # rows are in memory

    def next(self) -> StepBatches[Batch]:
        numbers, mine = self._advance()
        chosen = [self._rows[number] for number in numbers]
        micro_batches = tuple(batch_of([chosen[index] for index in indices]) for indices in mine)
        return StepBatches(micro_batches, sum(self._weight_of(row) for row in chosen))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Raises DataError when the examples are not the ones that the position counts. Nothing else may change."""
        check_same_examples(state, self._identity)
        self._position = state["position"]
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _advance(self) -> tuple[list[int], list[list[int]]]:
        """Numbers of the rows of the next global batch; and which of them each micro-batch of this rank has."""
        first, mine = self._position, self._share.offsets(self._position)
        self._position = self._share.next_position(first)
        samples = np.arange(first, self._position, dtype=np.int64)
        epochs, places = np.divmod(samples, len(self._rows))
        chosen: list[int] = []
        for epoch in np.unique(epochs):
            of_epoch = places[epochs == epoch]
            chosen += permute(of_epoch, len(self._rows), key(self._seed, int(epoch))).tolist()
        return chosen, mine.tolist()


class ExampleEvaluation:
    """All rows once, in their order, shared out over the data-parallel ranks; every rank yields as many batches."""

    def __init__(self, rows: Sequence[PackedRow], *, micro_batch_size: int, data_rank: int, data_size: int) -> None:
        self._rows = rows
        self._size, self._rank, self._ranks = micro_batch_size, data_rank, data_size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._size * self._ranks):
            first = start + self._rank * self._size
            mine = list(self._rows[first : first + self._size])
            if mine:
                yield batch_of(mine)
            else:
                length = len(self._rows[0].is_target) - 1
                yield without_targets(1, length, attend_across_documents=False)


def batch_of(rows: Sequence[PackedRow]) -> Batch:
    """int64 [B, S] inputs, and labels where a response token follows, or the classes of positions."""
    batch = assemble([Row(row.tokens, row.ends) for row in rows], attend_across_documents=False)
    for number, row in enumerate(rows):
        if row.labels is None:
            batch.labels[number].numpy()[~row.is_target[1:]] = IGNORE_INDEX
        else:
            batch.labels[number].numpy()[:] = row.labels
    values = [row.values for row in rows if row.values is not None]
    if values:
        before = 0
        for labels, some in zip(batch.labels.numpy(), values, strict=True):
            labels[labels != IGNORE_INDEX] += before
            before += len(some)
        batch = replace(batch, example_targets=torch.from_numpy(np.concatenate(values)))
    if rows[0].labels is not None:
        batch = replace(batch, whole_labels=batch.labels.clone())
    types = [row.token_types for row in rows]
    if all(one is None for one in types):
        return batch
    whole = np.stack([np.zeros(batch.labels.shape[1], np.int64) if one is None else one for one in types])
    return replace(batch, token_types=torch.from_numpy(whole))
