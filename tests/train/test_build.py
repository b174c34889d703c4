"""What one rank of a large run allocates while its model is built, without its peers and their memory."""

import pytest
import torch

from launcher.deepspeed_config import deepspeed_config
from launcher.planning.layout import Layout
from launcher.planning.zero import largest_parameter, local_parameters, zero_bytes
from megatrain.model.architecture import row_of
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology
from tests.distributed.memory import MODELS, Case, LiveTensors
from tests.train.large import RANKS, llama_70b


@pytest.mark.parametrize(("tensor_parallel", "zero_stage"), [(1, 3), (8, 3), (8, 1)])
def test_a_rank_of_70b_makes_what_it_owns_and_one_parameter_beside_it(rank_of, tensor_parallel, zero_stage) -> None:
    from megatrain.optim.build import build_optimizer
    from megatrain.train.engine import compute_dtype, partitioner

    rank_of(RANKS)
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
        for g in build_optimizer(
            model, config.optimizer, decays=lambda name: row_of(config.model, name).decay
        ).param_groups
    )
    assert plain == 161 * 8192, "norms do not decay, and nothing else is spared"
    assert decayed + plain == local_parameters(config.model, tensor_parallel)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_the_start_on_64_ranks_takes_what_is_planned(rank_of, zero_stage, precision) -> None:
    from megatrain.tasks.causal_lm import CausalLM
    from megatrain.train.build import build_engine
    from megatrain.train.weights import initialize_weights

    layout = Layout(
        tensor_parallel=1,
        data_parallel=64,
        zero_stage=zero_stage,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
    )
    case = Case(name="wide", model=MODELS["wide"], layout=layout, sequence_length=64, precision=precision)
    rank_of(64)
    mesh = Mesh(Topology(world_size=64))
    with LiveTensors() as live:
        engine = build_engine(case.config, mesh, deepspeed_config(case.config, 64), CausalLM())
        initialize_weights(engine, case.model, seed=1)
        zero = zero_bytes(case.model, layout, precision)
        assert live.peak() == pytest.approx(zero.standing + zero.starting, rel=0.01)
