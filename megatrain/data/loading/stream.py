"""The samples of a run by their position: where each lies, and what it holds. Knows no ranks and keeps no state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.config import DataSection
from megatrain.data.loading.batch import Rows
from megatrain.data.loading.shards import BlockError
from megatrain.data.loading.sources import OpenSources
from megatrain.data.loading.transform import Transform
from megatrain.data.ordering.curriculum import curriculum
from megatrain.data.ordering.order import Order, Quarantined, Samples, ShuffleRule
from megatrain.data.ordering.position import identity

Int64 = NDArray[np.int64]


class SampleStream:
    """Every sample of a run. Safe to use from several threads.

    Raises:
        DataError: a source is missing, damaged or unsuitable.
    """

    def __init__(self, data: DataSection, seed: int) -> None:
        self._data = data
        self._seed = seed
        self.phases = curriculum(data)
        order_phases = [phase.order_phase() for phase in self.phases]
        with_ends = not data.attend_across_documents
        self.sources = OpenSources(data.train, data.sequence_length, with_ends=with_ends, reading=data.reading)
        rule = ShuffleRule(data.shuffle.mode, data.shuffle.streams, data.shuffle.window_blocks)
        self.order = Order(self.sources.sizes, order_phases, seed, rule, self._quarantined())
        self._lengths = [phase.sequence_length for phase in self.phases]
        vocab_size = self.sources.data[0].manifest.vocab_size
        self._transform = Transform(data.transform, vocab_size) if data.transform else None

    def read(self, positions: Int64) -> tuple[Samples, Rows]:
        """The samples at `positions`, int64 [N]: where they lie; tokens [N, sequence_length + 1] and document ends.

        Raises:
            DataError: a block cannot be read, or is damaged; says how to go on without it.
        """
        samples = self.order.locate(positions)
        try:
            rows = self.sources.read_rows(samples.source, samples.block, samples.row)
        except BlockError as error:
            raise DataError(f"{error} {self._advice(error, positions)}") from None
        return samples, self._transform.apply(rows, positions) if self._transform else rows

    def targets(self, first: int, count: int) -> int:
        """Labels with a target in `count` samples from position `first` on."""
        if not self.sources.packed:
            return count * self._data.sequence_length
        samples = self.order.locate(np.arange(first, first + count, dtype=np.int64))
        return self.sources.targets(samples.source, samples.block, samples.row)

    def sequence_length(self, position: int) -> int:
        """What the sample at a position is cut into."""
        return self._lengths[int(self.order.phases(np.array([position]))[0])]

    def identity(self) -> dict[str, Any]:
        """See `position.identity`."""
        hashes = [data.manifest.manifest_hash for data in self.sources.data]
        return identity(self._data, self._seed, hashes)

    def close(self) -> None:
        self.sources.close()
        if self._transform:
            self._transform.close()

    def _quarantined(self) -> list[Quarantined]:
        found = []
        for number, bad in enumerate(self._data.quarantine):
            for source in self._sources_at(bad.path):
                blocks = len(self.sources.data[source].index)
                if bad.block >= blocks:
                    raise DataError(
                        f"data.quarantine.{number}.block: {bad.block}: {bad.path} has blocks 0 to {blocks - 1}."
                    )
                found.append(Quarantined(source, bad.block, bad.from_sample))
        for source, size in enumerate(self.sources.sizes):
            blocks = -(-size.rows // size.rows_per_block)  # a last block of no whole row is never read
            if len({bad.block for bad in found if bad.source == source and bad.block < blocks}) == blocks:
                path = self._data.train[source].path
                raise DataError(f"data.quarantine: leaves no block of {path}. Leave that source out of data.train.")
        return found

    def _sources_at(self, path: str) -> list[int]:
        return [n for n, source in enumerate(self._data.train) if source.path.rstrip("/") == path.rstrip("/")]

    def _advice(self, error: BlockError, positions: Sequence[int] | Int64) -> str:
        entry = f"{{path: {error.path}, block: {error.block}, from_sample: {int(min(positions))}}}"
        return f"To go on without it, other rows standing in, add to data.quarantine: {entry}"
