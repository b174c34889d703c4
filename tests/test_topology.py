"""Rank arithmetic: groups partition the ranks, and agree with each rank's own coordinates."""

import pytest

from megatrain.topology import Topology

SHAPES = [(1, 1), (2, 1), (2, 2), (8, 2), (8, 4), (8, 8), (12, 3)]


def test_the_example_in_the_documentation():
    topology = Topology(world_size=8, tensor_parallel=2)
    assert [topology.tensor_rank(rank) for rank in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [topology.data_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert topology.tensor_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert topology.data_groups() == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(("world", "tensor"), SHAPES)
def test_groups_partition_the_ranks(world, tensor):
    topology = Topology(world_size=world, tensor_parallel=tensor)
    for groups in (topology.tensor_groups(), topology.data_groups()):
        assert sorted(rank for group in groups for rank in group) == list(range(world))
    assert {len(group) for group in topology.tensor_groups()} == {tensor}
    assert {len(group) for group in topology.data_groups()} == {topology.data_parallel}


@pytest.mark.parametrize(("world", "tensor"), SHAPES)
def test_a_rank_stands_in_its_groups_where_its_coordinates_say(world, tensor):
    topology = Topology(world_size=world, tensor_parallel=tensor)
    for rank in range(world):
        assert topology.tensor_groups()[topology.data_rank(rank)][topology.tensor_rank(rank)] == rank
        assert topology.data_groups()[topology.tensor_rank(rank)][topology.data_rank(rank)] == rank


@pytest.mark.parametrize(("world", "tensor"), [(4, 3), (4, 8), (4, 0), (4, -2)])
def test_what_does_not_divide(world, tensor):
    with pytest.raises(ValueError, match=f"tensor_parallel={tensor} does not divide world_size={world}"):
        Topology(world_size=world, tensor_parallel=tensor)
