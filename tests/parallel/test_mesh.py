from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _process_group_color

from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology
from tests.parallel.fake_world import fake_world


@pytest.mark.parametrize(
    ("tensor", "context", "sizes"),
    [(1, 1, [1, 1024]), (8, 1, [1, 8, 128]), (1, 4, [1, 4, 1024]), (8, 4, [1, 8, 4, 128]), (8, 128, [1, 8, 128, 128])],
)
def test_a_rank_asks_for_its_own_groups_only(tensor, context, sizes) -> None:
    """1,024 ranks that each ask for every group make a million calls."""
    topology = Topology(world_size=1024, tensor_parallel=tensor, context_parallel=context)
    with fake_world(1024, rank=777) as asked:
        mesh = Mesh(topology)
        assert [len(ranks) for ranks in asked] == [*sizes, 1024]  # the last is the control group
        assert all(777 in ranks for ranks in asked)
        assert dist.get_process_group_ranks(mesh.tensor_group) in topology.tensor_groups()
        assert dist.get_process_group_ranks(mesh.context_group) in topology.context_groups()
        assert dist.get_process_group_ranks(mesh.dp_cp_group) in topology.dp_cp_groups()
        assert dist.get_rank(mesh.tensor_group) == mesh.tensor_rank
        assert dist.get_rank(mesh.dp_cp_group) == mesh.get_data_parallel_rank()


def test_collectives_give_up_when_they_are_told_to_and_the_control_group_waits(one_rank) -> None:
    """torch gives groups its own time-out, not the one that the world was made with."""
    mesh = Mesh(Topology(world_size=1), timeout=timedelta(seconds=660))

    def timeout(group: dist.ProcessGroup) -> timedelta:
        return group._get_backend(torch.device("cpu")).options._timeout

    assert timeout(mesh.tensor_group) == timeout(mesh.dp_cp_group) == timedelta(seconds=660)
    assert timeout(mesh.control_group) == timedelta(days=1)


@pytest.mark.parametrize("world_size", [8, 64, 1024, 4096])
def test_no_two_groups_of_a_kind_are_one_split_of_the_world(world_size) -> None:
    """NCCL tells the groups of a split apart by a number that torch makes of their ranks."""
    for size in (1, 2, 4, 8):
        topology = Topology(world_size=world_size, tensor_parallel=size)
        for groups in (topology.tensor_groups(), topology.dp_cp_groups()):
            assert len({_process_group_color(ranks) for ranks in groups}) == len(groups)
