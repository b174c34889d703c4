"""Rank arithmetic: groups partition the ranks, and agree with each rank's own coordinates."""

import pytest

from megatrain.topology import Topology

SHAPES = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 2, 1), (8, 4, 2), (8, 8, 1), (8, 1, 8), (12, 3, 2), (16, 2, 4)]


def shape(world, tensor, context):
    return Topology(world_size=world, tensor_parallel=tensor, context_parallel=context)


def test_the_example_in_the_documentation():
    topology = shape(8, 2, 2)
    assert [topology.tensor_rank(rank) for rank in range(8)] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert [topology.context_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [topology.data_rank(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert topology.tensor_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert topology.context_groups() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert topology.dp_cp_groups() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert topology.hpz_groups(2) == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert (topology.data_parallel, topology.replicas) == (2, 4)
    assert str(topology) == "tensor 2, context 2, data 2"
    assert str(shape(8, 2, 1)) == "tensor 2, data 4"


@pytest.mark.parametrize("sizes", SHAPES)
def test_groups_partition_the_ranks(sizes):
    topology = shape(*sizes)
    for groups, size in (
        (topology.tensor_groups(), topology.tensor_parallel),
        (topology.context_groups(), topology.context_parallel),
        (topology.dp_cp_groups(), topology.replicas),
        *((topology.hpz_groups(near), near) for near in (1, 2, 4) if topology.replicas % near == 0),
    ):
        assert sorted(rank for group in groups for rank in group) == list(range(topology.world_size))
        assert {len(group) for group in groups} == {size}


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_rank_stands_in_its_groups_where_its_coordinates_say(sizes):
    topology = shape(*sizes)
    for rank in range(topology.world_size):
        tensor, context, replica = topology.tensor_rank(rank), topology.context_rank(rank), topology.dp_cp_rank(rank)
        own = topology.tensor_groups()[replica], topology.dp_cp_groups()[tensor]
        (shared,) = (group for group in topology.context_groups() if rank in group)
        assert (own[0][tensor], own[1][replica], shared[context]) == (rank, rank, rank)
        assert {(topology.data_rank(other), topology.tensor_rank(other)) for other in shared} == {
            (topology.data_rank(rank), tensor)
        }


@pytest.mark.parametrize(("world", "tensor", "context"), [(4, 3, 1), (4, 8, 1), (4, 0, 1), (4, -2, 1), (4, 2, 4)])
def test_what_does_not_divide(world, tensor, context):
    with pytest.raises(ValueError, match=f"tensor_parallel={tensor} × context_parallel={context} does not divide"):
        shape(world, tensor, context)
