import pytest
import torch

from megatrain.config import ParallelSection
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology

PLAIN = ParallelSection(
    tensor_parallel=1, zero_stage=0, sequence_parallel=False, activation_checkpointing="none", compile=False
)


def test_weights_take_their_place_one_after_the_other(one_rank, section) -> None:
    placed = []
    model = build_parallel_model(
        section,
        PLAIN,
        Mesh(Topology(world_size=1)),
        dtype=torch.bfloat16,
        placed=lambda name, p: placed.append((name, p)),
    )
    assert [(name, id(p)) for name, p in placed] == [(name, id(p)) for name, p in model.named_parameters()]
    assert all(p.dtype == torch.bfloat16 and p.device.type == "cpu" for _, p in placed)


def test_what_is_done_to_a_model_keeps_its_names(one_rank, section) -> None:
    everything = PLAIN.model_copy(
        update={"activation_checkpointing": "full", "compile": True, "sequence_parallel": True}
    )
    mesh = Mesh(Topology(world_size=1))
    plain, changed = (build_parallel_model(section, parallel, mesh) for parallel in (PLAIN, everything))
    assert list(plain.state_dict()) == list(changed.state_dict())


def test_only_the_forward_of_a_block_is_compiled(make_model) -> None:
    """A wrapped module would rename its parameters; hooks on the block must stay outside the graph."""
    model = make_model()
    blocks, before = list(model.blocks), list(model.state_dict())
    compile_blocks(model)
    assert list(model.blocks) == blocks
    assert list(model.state_dict()) == before
    assert all("forward" in vars(block) for block in model.blocks)


def test_a_mesh_of_another_size_is_refused(one_rank) -> None:
    with pytest.raises(ValueError, match="the topology is for 4 ranks, but 1 run"):
        Mesh(Topology(world_size=4, tensor_parallel=2))


def test_a_mesh_answers_as_deepspeed_asks(one_rank) -> None:
    mesh = Mesh(Topology(world_size=1))
    assert mesh.is_main
    assert (mesh.get_model_parallel_rank(), mesh.get_model_parallel_world_size()) == (0, 1)
    assert (mesh.get_data_parallel_rank(), mesh.get_data_parallel_world_size()) == (0, 1)
    assert mesh.get_data_parallel_group() is mesh.dp_cp_group
    assert mesh.get_model_parallel_group() is mesh.get_tensor_model_parallel_group() is mesh.tensor_group
