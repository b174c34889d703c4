"""Which row of which block is sample number g: a pure function of the position, the seed and the sizes of the data.

    g -> (stage, source, epoch, block, row)

No state, no files, no ranks: any process can ask for any g. Stages change the weights of the sources at given
positions; a source goes on where the stage before left it. Within a source, each epoch is one permutation of all its
rows (for local disks, where a read of one row is cheap). Across two epochs nothing is promised: the last row of one
may be the first of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.data.mixture import Mixture
from megatrain.data.permutation import key, permute

ORDER_VERSION = 1

Int64 = NDArray[np.int64]

# What a key is for, so that no two uses share one.
_MIXING, _SHUFFLING = 1, 2


class Samples(NamedTuple):
    """Where samples are, each int64 [N]."""

    stage: Int64
    source: Int64
    epoch: Int64
    block: Int64
    row: Int64


@dataclass(frozen=True, slots=True)
class SourceSize:
    """Rows of a source: all blocks hold `rows_per_block`, but for the last, which may hold fewer."""

    rows: int
    rows_per_block: int


@dataclass(frozen=True, slots=True)
class Stage:
    """From position `first` on, sources are mixed by `quotas` (see `mixture.quotas`)."""

    first: int
    quotas: tuple[int, ...]


class Order:
    """The order of all samples of a run.

    Args:
        sources: their sizes, in the order of the configuration.
        stages: ascending; the first begins at 0.
        seed: run.seed.
    """

    def __init__(self, sources: Sequence[SourceSize], stages: Sequence[Stage], seed: int) -> None:
        assert stages[0].first == 0
        self._sources = tuple(sources)
        self._seed = seed
        self._first = np.array([stage.first for stage in stages], dtype=np.int64)
        self._mixtures = [Mixture(stage.quotas, key(seed, _MIXING, number)) for number, stage in enumerate(stages)]
        # samples that each source gave before each stage, int64 [stages][sources]
        self._given = [np.zeros(len(self._sources), dtype=np.int64)]
        for number, length in enumerate(np.diff(self._first)):
            self._given.append(self._given[-1] + self._mixtures[number].counts(int(length)))

    def locate(self, positions: Int64) -> Samples:
        """Where the samples at `positions` (int64 [N], any order) are."""
        stages = np.searchsorted(self._first, positions, side="right") - 1
        sources, ordinals = np.empty_like(positions), np.empty_like(positions)
        for stage in np.unique(stages):
            here = stages == stage
            sources[here], ordinals[here] = self._mixtures[stage].locate(positions[here] - self._first[stage])
            ordinals[here] += self._given[stage][sources[here]]
        epochs, blocks, rows = (np.empty_like(positions) for _ in range(3))
        for source in np.unique(sources):
            here = sources == source
            epochs[here], blocks[here], rows[here] = self._within_source(int(source), ordinals[here])
        return Samples(stages, sources, epochs, blocks, rows)

    def counts(self, position: int) -> Int64:
        """Samples that each source gave before `position`, int64 [sources]."""
        stage = int(np.searchsorted(self._first, position, side="right")) - 1
        return self._given[stage] + self._mixtures[stage].counts(position - int(self._first[stage]))

    def _within_source(self, source: int, ordinals: Int64) -> tuple[Int64, Int64, Int64]:
        size = self._sources[source]
        epochs, indices = np.divmod(ordinals, size.rows)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permute(indices[here], size.rows, key(self._seed, _SHUFFLING, source, epoch))
        blocks, rows = np.divmod(indices, size.rows_per_block)
        return epochs, blocks, rows
