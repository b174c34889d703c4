"""Which samples of a step each data-parallel rank reads."""

import numpy as np
from numpy.typing import NDArray

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.errors import ConfigError

Int64 = NDArray[np.int64]


def rank_offsets(*, global_batch_size: int, micro_batch_size: int, data_rank: int, data_size: int) -> Int64:
    """Which samples of a global batch a rank reads, int64 [micro-batches, micro_batch_size].

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    if global_batch_size % (micro_batch_size * data_size):
        raise ConfigError(
            f"training.global_batch_size: {global_batch_size}: must be a multiple of micro_batch_size x "
            f"data-parallel ranks = {micro_batch_size} x {data_size}"
        )
    in_step = np.arange(global_batch_size, dtype=np.int64).reshape(-1, data_size, micro_batch_size)
    return in_step[:, data_rank, :]


class RankShare:
    """One rank's share of any step, by the step's first sample.

    Args:
        global_batch_size: samples of a step over all ranks; or of each step, where they differ.

    Raises:
        ConfigError: a batch cannot be shared out evenly.
    """

    def __init__(
        self, global_batch_size: int | BatchSizes, *, micro_batch_size: int, data_rank: int, data_size: int
    ) -> None:
        self.sizes = BatchSizes.of(global_batch_size)
        self._offsets = {
            size: rank_offsets(
                global_batch_size=size, micro_batch_size=micro_batch_size, data_rank=data_rank, data_size=data_size
            )
            for size in self.sizes.every
        }

    def size(self, position: int) -> int:
        """Samples of the step over all ranks."""
        return self.sizes.at(position)

    def offsets(self, position: int) -> Int64:
        """As `rank_offsets`."""
        return self._offsets[self.sizes.at(position)]

    def next_position(self, position: int) -> int:
        return self.sizes.after(position)
