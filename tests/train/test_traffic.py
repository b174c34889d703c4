"""What a step sends, moves and waits for, seen on one rank of a large world: against what the planner counts."""

from dataclasses import replace

import pytest
import torch

from launcher.deepspeed_config import deepspeed_config
from launcher.planning.cost import gradient_bytes, tensor_parallel_bytes
from launcher.planning.data_parallel import data_parallel_bytes
from launcher.planning.layout import Layout
from launcher.planning.zero import local_parameters
from megatrain.model.families.llama.section import LlamaSection
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology
from tests.distributed import memory
from tests.parallel.traffic import Traffic
from tests.train.large import RANKS, llama_70b

WORLD, MICRO_BATCHES, LENGTH = 64, 2, 64
MODEL = LlamaSection(
    num_hidden_layers=3,
    hidden_size=256,
    num_attention_heads=8,
    num_key_value_heads=8,
    intermediate_size=512,
    vocab_size=1024,
)


def layout_of(stage: int, tensor: int, world: int = WORLD, recompute: str = "none") -> Layout:
    return Layout(
        tensor_parallel=tensor,
        data_parallel=world // tensor,
        zero_stage=stage,
        sequence_parallel=tensor > 1,
        micro_batch_size=1,
        gradient_accumulation_steps=MICRO_BATCHES,
        activation_checkpointing=recompute,  # type: ignore[arg-type]
    )


def a_step(layout: Layout, precision: str, monkeypatch) -> tuple[Traffic, int]:
    """The second step of an engine whose numbers are on a device, as it were; and the number of its parameters."""
    case = memory.Case(name="", model=MODEL, layout=layout, sequence_length=LENGTH, precision=precision)
    real = deepspeed_config

    def as_for_a_large_model(*arguments):
        """ZeRO-3 keeps no parameter gathered."""
        settings = real(*arguments)
        if layout.zero_stage == 3:
            settings["zero_optimization"] |= {
                "stage3_param_persistence_threshold": 0,
                "stage3_max_live_parameters": 0,
                "stage3_max_reuse_distance": 0,
            }
        return settings

    monkeypatch.setattr("launcher.deepspeed_config.deepspeed_config", as_for_a_large_model)
    engine, batch = memory._build(case)
    from deepspeed.utils import groups

    engine._on_host = False

    def step() -> torch.Tensor:
        for _ in range(MICRO_BATCHES):
            engine.forward_backward(batch, LENGTH)
            norm = engine.step(1e-4)
        return norm

    step()
    with Traffic(engine.mesh, groups._ZERO_PARAM_INTRA_PARALLEL_GROUP) as traffic:
        assert isinstance(step(), torch.Tensor)
    return traffic, len(list(engine._engine.module.parameters()))


# How often DeepSpeed waits, by stage; without ZeRO in bf16 once more per tensor. A release that adds one fails here.
WAITS = {"fp32": {0: 0, 1: 1, 2: 1}, "bf16": {0: 5, 1: 0, 2: 0, 3: 1}}
BF16 = {  # what goes to replicas
    0: {("all_reduce", "bfloat16")},
    1: {("reduce_scatter", "float32"), ("all_gather", "bfloat16")},
    2: {("all_reduce", "bfloat16"), ("all_gather", "bfloat16")},
    3: {("reduce_scatter", "bfloat16"), ("all_gather", "bfloat16")},
}


@pytest.mark.parametrize(
    ("precision", "stage", "tensor"),
    [
        *(("bf16", stage, tensor) for stage in (1, 2, 3) for tensor in (1, 8)),
        ("bf16", 0, 1),
        *(("fp32", stage, 1) for stage in (0, 1, 2)),
    ],
)
def test_a_step_sends_and_moves_what_is_planned_and_waits_for_nothing(
    rank_of, monkeypatch, precision, stage, tensor
) -> None:
    rank_of(WORLD)
    layout = layout_of(stage, tensor)
    traffic, tensors = a_step(layout, precision, monkeypatch)

    planned = data_parallel_bytes(MODEL, layout, precision)
    assert traffic.over("replica") == pytest.approx(planned.total, rel=0.01), traffic.sent
    if precision == "bf16":
        assert {key[1:] for key, size in traffic.sent.items() if key[0] == "replica" and size > 4096} == BF16[stage]
    if tensor > 1:
        within = MICRO_BATCHES * tensor_parallel_bytes(MODEL, layout, LENGTH, precision)
        assert traffic.over("tensor") == pytest.approx(within, rel=0.1), "beside it, gradients of norms"

    assert traffic.waits["megatrain"] == 0
    per_tensor = tensors if (precision, stage) == ("bf16", 0) else 0
    assert traffic.waits["deepspeed"] == WAITS[precision][stage] + per_tensor

    if (precision, stage) == ("bf16", 1):  # DeepSpeed's own: 26 per micro-batch, and 32 for a step, of the whole model
        whole = local_parameters(MODEL, tensor)
        updating = (4 + 8 + 16 + 6) / layout.replicas  # norm, clipping, AdamW's four tensors, rounding to bf16
        assert traffic.moved["zero1.py"] == pytest.approx(whole * (gradient_bytes(layout, "bf16") + updating), rel=0.01)


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.full)])
def test_with_a_second_copy_all_but_the_first_gather_of_a_step_stay_in_the_node(rank_of, monkeypatch, tensor) -> None:
    rank_of(WORLD)
    layout = replace(layout_of(3, tensor), zero_hpz_partition_size=8 // tensor)
    traffic, _ = a_step(layout, "bf16", monkeypatch)
    planned = data_parallel_bytes(MODEL, layout, "bf16")
    assert traffic.over("replica") == pytest.approx(planned.reduce + planned.gather, rel=0.01), traffic.sent
    assert traffic.over("near") == pytest.approx(planned.near, rel=0.01), traffic.sent
    assert traffic.waits["megatrain"] == 0
    assert traffic.waits["deepspeed"] == WAITS["bf16"][3]


@pytest.mark.parametrize(("tensor", "recompute"), [(1, "none"), (8, "none"), (8, "full"), (1, "offload")])
def test_a_rank_of_70b_on_1024_waits_for_nothing_and_sends_what_is_planned(rank_of, tensor, recompute) -> None:
    """On the meta device: it has no memory, no number can be read from it, and none on the CPU be mixed in."""
    import deepspeed
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config

    from megatrain.train.zero1 import Zero1Optimizer

    rank_of(RANKS, rank=777)
    deepspeed.init_distributed(dist_init_required=False)
    config = llama_70b(tensor_parallel=tensor, zero_stage=1)
    parallel = config.parallel.model_copy(update={"activation_checkpointing": recompute})
    mesh = Mesh(Topology(world_size=RANKS, tensor_parallel=tensor))
    model = build_parallel_model(config.model, parallel, mesh, device="meta", dtype=torch.bfloat16)
    optimizer = Zero1Optimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),  # AdamW counts its steps on the CPU where it is not fused
        {p: name for name, p in model.named_parameters()},
        DeepSpeedBF16Config(enabled=True),
        mpu=mesh,
        clip_grad=1.0,
        dp_process_group=mesh.dp_cp_group,
        grad_acc_dtype=torch.float32,
    )
    tokens = torch.zeros(1, 8192, dtype=torch.int64, device="meta")
    with Traffic(mesh) as traffic:
        loss = model(tokens, tokens, position_ids_BS=tokens)
        loss.backward()
        within = traffic.over("tensor")
        optimizer.reduce_gradients()
        optimizer.step()
    assert optimizer._global_grad_norm.device.type == "meta"
    assert traffic.on_cpu == {}, "no result on the CPU"
    layout = layout_of(1, tensor, RANKS, recompute)
    assert within == pytest.approx(tensor_parallel_bytes(config.model, layout, 8192, "bf16"), rel=0.01)
    assert traffic.over("replica") == pytest.approx(data_parallel_bytes(config.model, layout, "bf16").total, rel=1e-3)
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()
