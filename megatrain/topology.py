"""Which ranks work together: rank <-> (data, tensor) arithmetic.

Tensor-parallel groups are runs of neighbouring ranks, so that they share a node's fast links; data-parallel
groups stride across them. With world size 8 and tensor_parallel 2:

    rank           0 1 2 3 4 5 6 7
    tensor rank    0 1 0 1 0 1 0 1
    data rank      0 0 1 1 2 2 3 3
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The shape of a run's ranks.

    Raises:
        ValueError: tensor_parallel does not divide world_size.
    """

    world_size: int
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1 or self.world_size % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} does not divide world_size={self.world_size}; "
                "choose a divisor of the number of ranks"
            )

    @property
    def data_parallel(self) -> int:
        return self.world_size // self.tensor_parallel

    def data_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel

    def tensor_rank(self, rank: int) -> int:
        return rank % self.tensor_parallel

    def tensor_groups(self) -> list[list[int]]:
        """The ranks of each tensor-parallel group; every rank is in exactly one."""
        size = self.tensor_parallel
        return [list(range(first, first + size)) for first in range(0, self.world_size, size)]

    def data_groups(self) -> list[list[int]]:
        """The ranks of each data-parallel group; every rank is in exactly one."""
        return [list(range(first, self.world_size, self.tensor_parallel)) for first in range(self.tensor_parallel)]
