"""What one rank of a large run allocates while its model is built, without its peers and their memory."""

import pytest
import torch

from launcher.deepspeed_config import deepspeed_config
from launcher.planning.zero import largest_parameter, local_parameters
from megatrain.config import PretrainConfig
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology
from tests.distributed.memory import LiveTensors
from tests.parallel.fake_world import fake_world

RANKS = 1024


def llama_70b(*, tensor_parallel: int, zero_stage: int, layers: int = 80) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "run": {"name": "70b"},
            "model": {
                "num_hidden_layers": layers,
                "hidden_size": 8192,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "intermediate_size": 28672,
                "vocab_size": 128256,
            },
            "data": {"sequence_length": 8192, "train": [{"path": "none"}]},
            "training": {"steps": 1, "global_batch_size": RANKS, "micro_batch_size": 1, "precision": "bf16"},
            "parallel": {
                "tensor_parallel": tensor_parallel,
                "context_parallel": 1,
                "zero_stage": zero_stage,
                "sequence_parallel": tensor_parallel > 1,
                "activation_checkpointing": "full",
                "compile": False,
            },
        }
    )


@pytest.fixture
def rank_of_many(monkeypatch: pytest.MonkeyPatch):
    """DeepSpeed as a rank of 1,024 sees it."""
    import deepspeed.comm.comm as comm

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(comm, "cdb", None)
    with fake_world(RANKS, rank=777):
        yield


@pytest.mark.parametrize(("tensor_parallel", "zero_stage"), [(1, 3), (8, 3), (8, 1)])
def test_a_rank_of_70b_makes_what_it_owns_and_one_parameter_beside_it(
    rank_of_many, tensor_parallel, zero_stage
) -> None:
    from megatrain.train.engine import compute_dtype, partitioner
    from megatrain.train.optimizer import build_optimizer

    config = llama_70b(tensor_parallel=tensor_parallel, zero_stage=zero_stage)
    ds_config = deepspeed_config(config, RANKS)
    mesh = Mesh(Topology(world_size=RANKS, tensor_parallel=tensor_parallel))
    names, partition = [], partitioner(mesh, ds_config, "cpu")

    def placed(name: str, parameter: torch.nn.Parameter) -> None:
        partition(parameter)
        names.append(name)

    with LiveTensors() as live:  # memory that is never written to takes none of this machine's
        model = build_parallel_model(config.model, config.parallel, mesh, dtype=compute_dtype(ds_config), placed=placed)
        whole = 2 * local_parameters(config.model, tensor_parallel)
        owned = whole / mesh.replicas if zero_stage == 3 else whole
        assert live.bytes == pytest.approx(owned, rel=1e-4)
        assert live.peak() <= live.bytes + 2 * largest_parameter(config.model, tensor_parallel)
    assert names == [name for name, _ in model.named_parameters()]
    decayed, plain = (
        sum(getattr(p, "ds_numel", p.numel()) for p in g["params"])
        for g in build_optimizer(model, config.optimizer).param_groups
    )
    assert plain == 161 * 8192, "norms do not decay, and nothing else is spared"
    assert decayed + plain == local_parameters(config.model, tensor_parallel)
