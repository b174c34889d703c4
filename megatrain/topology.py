"""Which ranks work together: rank <-> (data, context, tensor) arithmetic.

Tensor-parallel groups are runs of neighbouring ranks, so that they share a node's fast links; context-parallel groups
stride over them, and data-parallel ranks are what is left. With world size 8, tensor_parallel 2 and context_parallel 2:

    rank           0 1 2 3 4 5 6 7
    tensor rank    0 1 0 1 0 1 0 1      holds another slice of the weights
    context rank   0 0 1 1 0 0 1 1      sees another part of the same sequences
    data rank      0 0 0 0 1 1 1 1      sees other sequences

Ranks of one tensor rank are replicas: they hold the same weights, which ZeRO partitions over them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The shape of a run's ranks.

    Raises:
        ValueError: tensor_parallel × context_parallel does not divide world_size.
    """

    world_size: int
    tensor_parallel: int = 1
    context_parallel: int = 1

    def __post_init__(self) -> None:
        model = self.tensor_parallel * self.context_parallel
        if min(self.tensor_parallel, self.context_parallel) < 1 or self.world_size % model:
            raise ValueError(
                f"tensor_parallel={self.tensor_parallel} × context_parallel={self.context_parallel} does not divide "
                f"world_size={self.world_size}; choose divisors of the number of ranks"
            )

    def __str__(self) -> str:
        context = f"context {self.context_parallel}, " if self.context_parallel > 1 else ""
        return f"tensor {self.tensor_parallel}, {context}data {self.data_parallel}"

    @property
    def data_parallel(self) -> int:
        return self.world_size // (self.tensor_parallel * self.context_parallel)

    @property
    def replicas(self) -> int:
        """How many ranks hold the same slices of the weights."""
        return self.data_parallel * self.context_parallel

    def data_rank(self, rank: int) -> int:
        return rank // (self.tensor_parallel * self.context_parallel)

    def context_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel % self.context_parallel

    def tensor_rank(self, rank: int) -> int:
        return rank % self.tensor_parallel

    def dp_cp_rank(self, rank: int) -> int:
        return rank // self.tensor_parallel

    def tensor_groups(self) -> list[list[int]]:
        """The ranks of each tensor-parallel group; every rank is in exactly one, of these as of the others."""
        size = self.tensor_parallel
        return [list(range(first, first + size)) for first in range(0, self.world_size, size)]

    def context_groups(self) -> list[list[int]]:
        stride, span = self.tensor_parallel, self.tensor_parallel * self.context_parallel
        return [
            list(range(start + first, start + span, stride))
            for start in range(0, self.world_size, span)
            for first in range(stride)
        ]

    def hpz_groups(self, size: int) -> list[list[int]]:
        """Of each dp_cp group, runs of so many neighbours. `size` divides the replicas."""
        return [ranks[at : at + size] for ranks in self.dp_cp_groups() for at in range(0, self.replicas, size)]

    def dp_cp_groups(self) -> list[list[int]]:
        return [list(range(first, self.world_size, self.tensor_parallel)) for first in range(self.tensor_parallel)]
