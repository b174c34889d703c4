"""Mixing sources by whole numbers: every 4,096 samples in a row hold each source's exact quota.

A mix block is 4,096 positions. Each has the same quotas and an arrangement of its own, so the number of samples that a
source gave before any position is arithmetic: full blocks times the quota, plus a count within one block.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.data.ordering.permutation import each, explicit_permutation, key

MIX_BLOCK = 4096

Int64 = NDArray[np.int64]


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Samples of each source in a mix block: proportional to the weights, by largest remainder; they sum to 4,096.

    Raises:
        DataError: a weight is above 0 but so small that its source would never be seen.
    """
    if not math.isfinite(sum(weights)):
        raise DataError(f"data.train: its weights {', '.join(f'{weight:g}' for weight in weights)} have no finite sum")
    exact = [weight / sum(weights) * MIX_BLOCK for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: (whole[source] - exact[source], source))
    for source in by_remainder[: MIX_BLOCK - sum(whole)]:
        whole[source] += 1
    unseen = [source for source, weight in enumerate(weights) if weight and not whole[source]]
    if unseen:
        source = unseen[0]
        raise DataError(
            f"data.train.{source}.weight: {weights[source]}: is under 1/{MIX_BLOCK} of all weights ({sum(weights):g}), "
            "so its source would never be read. Raise it, or leave the source out."
        )
    return tuple(whole)


class Mixture:
    """Position -> (source, ordinal of the sample within its source), for one set of weights.

    Args:
        quota: samples a mix block of each source, as `quotas` gives them.
        mix_key: decides the arrangement inside each mix block.
    """

    def __init__(self, quota: Sequence[int], mix_key: np.uint64) -> None:
        self.quota = np.asarray(quota, dtype=np.int64)
        self._first_slot = np.concatenate([[0], np.cumsum(self.quota)])
        self._key = mix_key
        self._arrangement = lru_cache(maxsize=8)(self._arrange)

    def locate(self, positions: Int64) -> tuple[Int64, Int64]:
        """int64 [N] -> sources int64 [N], ordinals int64 [N]. Ordinals of a source count up without gaps."""
        mix_blocks, slots = np.divmod(positions, MIX_BLOCK)
        sources, ordinals = np.empty_like(positions), np.empty_like(positions)
        for mix_block, here in each(mix_blocks):
            source_of_slot, rank_of_slot = self._arrangement(mix_block)
            of = source_of_slot[slots[here]]
            sources[here], ordinals[here] = of, mix_block * self.quota[of] + rank_of_slot[slots[here]]
        return sources, ordinals

    def counts(self, position: int) -> Int64:
        """Samples of each source before `position`, int64 [sources]."""
        mix_block, slot = divmod(position, MIX_BLOCK)
        source_of_slot, _ = self._arrangement(mix_block)
        return mix_block * self.quota + np.bincount(source_of_slot[:slot], minlength=len(self.quota))

    def _arrange(self, mix_block: int) -> tuple[Int64, Int64]:
        """For each slot of a mix block: its source, and how many slots before it have the same source."""
        shuffled = explicit_permutation(MIX_BLOCK, key(self._key, mix_block))
        source_of_slot = np.searchsorted(self._first_slot, shuffled, side="right") - 1
        by_source = np.argsort(source_of_slot, kind="stable")
        rank_of_slot = np.empty(MIX_BLOCK, dtype=np.int64)
        rank_of_slot[by_source] = np.arange(MIX_BLOCK) - self._first_slot[source_of_slot[by_source]]
        return source_of_slot, rank_of_slot
