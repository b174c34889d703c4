"""Which row of which block is sample number g: a pure function of the position, the seed and the sizes of the data.

    g -> (phase, source, epoch, block, row)

No state, no files, no ranks: any process can ask for any g. Phases change the weights of the sources at given
positions; a source goes on where the phase before left it. Within a source, each epoch visits every row once, in an
order of its own (`shuffle`). Across two epochs nothing is promised: the last row of one may be the first of the next.

Rows of a quarantined block are replaced by others of the same source, chosen by a hash: such a row is then read once
more than the rest in its epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.data.ordering.mixture import Mixture
from megatrain.data.ordering.permutation import each, key
from megatrain.data.ordering.shuffle import ShuffleRule, SourceSize, shuffle_of

__all__ = ["ORDER_VERSION", "Order", "Phase", "Quarantined", "Samples", "ShuffleRule", "SourceSize"]

ORDER_VERSION = 2

Int64 = NDArray[np.int64]

# What a key is for, so that no two uses share one.
_MIXING, _SHUFFLING, _SUBSTITUTING = 1, 2, 3


class Samples(NamedTuple):
    """Where samples are, each int64 [N]."""

    phase: Int64
    source: Int64
    epoch: Int64
    block: Int64
    row: Int64
    replaced: Int64  # the quarantined block whose row this one stands in for; -1: none


@dataclass(frozen=True, slots=True)
class Phase:
    """From position `first` on, sources are mixed by `quotas` (see `mixture.quotas`)."""

    first: int
    quotas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A block of a source that samples from position `first` on do not see."""

    source: int
    block: int
    first: int


class Order:
    """The order of all samples of a run.

    Args:
        sources: their sizes, in the order of the configuration.
        phases: ascending; the first begins at 0.
        seed: run.seed.
        rule: how rows are shuffled.
        quarantine: blocks to replace. Some block of each source must be left.
    """

    def __init__(
        self,
        sources: Sequence[SourceSize],
        phases: Sequence[Phase],
        seed: int,
        rule: ShuffleRule = ShuffleRule(),  # noqa: B008 - frozen
        quarantine: Sequence[Quarantined] = (),
    ) -> None:
        assert phases[0].first == 0
        self._sources = tuple(sources)
        self._seed = seed
        self._quarantine = tuple(quarantine)
        self._first = np.array([phase.first for phase in phases], dtype=np.int64)
        self._mixtures = [Mixture(phase.quotas, key(seed, _MIXING, number)) for number, phase in enumerate(phases)]
        self._shuffles = [shuffle_of(size, rule) for size in sources]
        # samples that each source gave before each phase, int64 [phases][sources]
        self._given = [np.zeros(len(self._sources), dtype=np.int64)]
        for number, length in enumerate(np.diff(self._first)):
            self._given.append(self._given[-1] + self._mixtures[number].counts(int(length)))

    def phases(self, positions: Int64) -> Int64:
        """The phase that each position is in."""
        return np.searchsorted(self._first, positions, side="right") - 1

    def locate(self, positions: Int64) -> Samples:
        """Where the samples at `positions` (int64 [N], any order) are."""
        phases = self.phases(positions)
        sources, ordinals = np.empty_like(positions), np.empty_like(positions)
        for phase, here in each(phases):
            sources[here], ordinals[here] = self._mixtures[phase].locate(positions[here] - self._first[phase])
            ordinals[here] += self._given[phase][sources[here]]
        epochs, blocks, rows = (np.empty_like(positions) for _ in range(3))
        for source, here in each(sources):
            epochs[here], blocks[here], rows[here] = self._within_source(source, ordinals[here])
        samples = Samples(phases, sources, epochs, blocks, rows, np.full_like(positions, -1))
        self._substitute(positions, samples)
        return samples

    def counts(self, position: int) -> Int64:
        """Samples that each source gave before `position`, int64 [sources]."""
        phase = int(self.phases(np.array([position]))[0])
        return self._given[phase] + self._mixtures[phase].counts(position - int(self._first[phase]))

    def _within_source(self, source: int, ordinals: Int64) -> tuple[Int64, Int64, Int64]:
        size = self._sources[source]
        epochs, indices = np.divmod(ordinals, size.rows)
        for epoch, here in each(epochs):
            indices[here] = self._shuffles[source].rows(indices[here], key(self._seed, _SHUFFLING, source, epoch))
        blocks, rows = np.divmod(indices, size.rows_per_block)
        return epochs, blocks, rows

    def _substitute(self, positions: Int64, samples: Samples) -> None:
        """Replace, in place, the rows of quarantined blocks."""
        for bad in self._quarantine:
            hit = (samples.source == bad.source) & (samples.block == bad.block) & (positions >= bad.first)
            for at in np.flatnonzero(hit):
                samples.replaced[at] = bad.block
                row = self._substitute_of(int(positions[at]), bad.source)
                samples.block[at], samples.row[at] = divmod(row, self._sources[bad.source].rows_per_block)

    def _substitute_of(self, position: int, source: int) -> int:
        size = self._sources[source]
        damaged = {bad.block for bad in self._quarantine if bad.source == source and bad.first <= position}
        attempt = 0
        while True:
            row = int(key(self._seed, _SUBSTITUTING, source, position, attempt)) % size.rows
            if row // size.rows_per_block not in damaged:
                return row
            attempt += 1
