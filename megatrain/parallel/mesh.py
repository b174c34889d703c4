"""The process groups of a run, and the face of them that DeepSpeed asks for."""

from datetime import timedelta

import torch.distributed as dist

from megatrain.topology import Topology


class Mesh:
    """This rank's groups. Every rank must build it, with the same topology: making a group is collective.

    Also serves as DeepSpeed's `mpu`: the methods at the end are the ones it calls. What it calls data-parallel are the
    replicas, whichever part of the data each of them sees.

    Args:
        timeout: of a collective of all groups but the control group, whose ranks may wait long for one that still reads
            or writes its share of a checkpoint: there the watchdog tells waiting from hanging.

    Attributes:
        tensor_group: ranks that hold the other slices of this rank's weights.
        context_group: ranks that see the other parts of this rank's sequences.
        dp_cp_group: ranks that hold the same slices and see other samples, or other parts of them.
        control_group: all ranks, over gloo: flags, file hashes and other small facts, on no GPU stream.
    """

    def __init__(self, topology: Topology, *, timeout: timedelta | None = None) -> None:
        self.topology = topology
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        if self.world_size != topology.world_size:
            raise ValueError(f"the topology is for {topology.world_size} ranks, but {self.world_size} run")
        self.tensor_rank = topology.tensor_rank(self.rank)
        self.context_rank = topology.context_rank(self.rank)
        self.data_rank = topology.data_rank(self.rank)
        alone = _new_group([self.rank], timeout)  # stands for every group of one rank
        kinds = (topology.tensor_groups(), topology.context_groups(), topology.dp_cp_groups())
        self.tensor_group, self.context_group, self.dp_cp_group = (
            alone if len(groups[0]) == 1 else _new_group(next(ranks for ranks in groups if self.rank in ranks), timeout)
            for groups in kinds
        )
        self.control_group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._timeout = timeout

    @property
    def tensor_parallel(self) -> int:
        return self.topology.tensor_parallel

    @property
    def context_parallel(self) -> int:
        return self.topology.context_parallel

    @property
    def data_parallel(self) -> int:
        return self.topology.data_parallel

    @property
    def replicas(self) -> int:
        return self.topology.replicas

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def neighbours(self, size: int) -> dist.ProcessGroup:
        """A new group of so many replicas, of which ZeRO-3 may gather weights. Collective."""
        groups = self.topology.hpz_groups(size)
        return _new_group(next(ranks for ranks in groups if self.rank in ranks), self._timeout)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self.tensor_group

    def get_model_parallel_rank(self) -> int:
        return self.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self.tensor_parallel

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.dp_cp_group

    def get_data_parallel_rank(self) -> int:
        return self.topology.dp_cp_rank(self.rank)

    def get_data_parallel_world_size(self) -> int:
        return self.replicas


def _new_group(ranks: list[int], timeout: timedelta | None) -> dist.ProcessGroup:
    """A group that only its own ranks ask for, at the same time as all other ranks ask for theirs of the kind.

    Where each rank asks for every group, their number is the square of the ranks'. Over NCCL this is one split of the
    world's communicator per kind, in which each group is a color; over gloo a group's members meet by themselves.
    """
    return dist.new_group(ranks, timeout, use_local_synchronization=True)
