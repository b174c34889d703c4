"""Validation batches: the same rows, in the same order, at every evaluation and on any number of ranks."""

from collections.abc import Iterator, Sequence

import numpy as np

from megatrain.config import ReadingSection, Source
from megatrain.data.loading.batch import IGNORE_INDEX, Batch, Row, assemble_rows, stacked, without_targets
from megatrain.data.loading.masking import Masking
from megatrain.data.loading.sources import OpenSources


class EvaluationLoader:
    """The first rows of each validation source, in natural order, shared out over the data-parallel ranks.

    Args:
        data_sources: prepared folders; their weights play no part.
        sequences: rows an evaluation reads at most, over all sources and ranks; each source gives an equal part, and
            one that is shorter gives all it has.
        micro_batch_size: sequences held at once per rank.
        data_rank, data_size: this rank among the data-parallel ones.
        reading: threads, retries and caches of reads.
        masking: of masked language modelling; default: each label is the next token.

    Every rank yields the same number of batches. A sequence too many, where the rows do not fill the last batches, has
    labels of IGNORE_INDEX only: weigh losses by their number of targets.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
    """

    def __init__(
        self,
        data_sources: Sequence[Source],
        sequence_length: int,
        attend_across_documents: bool,
        sequences: int,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        reading: ReadingSection | None = None,
        masking: Masking | None = None,
    ) -> None:
        self._masking = masking
        with_ends = not attend_across_documents
        self._sources = OpenSources(data_sources, sequence_length, with_ends=with_ends, reading=reading)
        self._sequence_length = sequence_length
        self._across = attend_across_documents
        self._rows = self._choose(sequences)
        self._size = micro_batch_size
        self._rank, self._ranks = data_rank, data_size

    def __len__(self) -> int:
        """Batches that each rank yields."""
        return -(-len(self._rows) // (self._size * self._ranks))

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            first = (number * self._ranks + self._rank) * self._size
            yield self._batch(first, self._rows[first : first + self._size])

    @property
    def sequences(self) -> int:
        """Rows an evaluation reads, over all ranks."""
        return len(self._rows)

    def close(self) -> None:
        self._sources.close()

    def _batch(self, first: int, places: Sequence[tuple[int, int, int]]) -> Batch:
        if not places:
            return without_targets(self._size, self._sequence_length, attend_across_documents=self._across)
        rows: list[Row] = [self._sources.read(*place) for place in places]
        missing = self._size - len(rows)
        filled = stacked(rows + rows[-1:] * missing)
        if self._masking is None:
            batch = assemble_rows(filled, attend_across_documents=self._across)
        else:
            samples = first + np.arange(self._size, dtype=np.int64)
            batch = self._masking.batch(filled, samples, attend_across_documents=self._across)
        batch.labels[len(rows) :] = IGNORE_INDEX
        return batch

    def _choose(self, sequences: int) -> list[tuple[int, int, int]]:
        """(source, block, row) of each row that is read."""
        sizes = self._sources.sizes
        chosen: list[tuple[int, int, int]] = []
        for source, size in enumerate(sizes):
            share = sequences // len(sizes) + (source < sequences % len(sizes))
            chosen += [(source, *divmod(index, size.rows_per_block)) for index in range(min(share, size.rows))]
        return chosen
