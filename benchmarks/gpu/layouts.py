"""One rank of layouts that need many GPUs, on this one: real weights, kernels and memory, and a process group without
peers, so that collectives cost nothing. Its peak against the planner's, its time against compute and optimizer."""

from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu.measure import Recorder
from launcher.planning.cost import estimate_step
from launcher.planning.hardware import load_hardware
from launcher.planning.memory import estimate_memory
from launcher.planning.plan import make_plan, resolve
from megatrain.config import PretrainConfig
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology

LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128_256,
}  # fmt: skip
TOY = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8,
    "intermediate_size": 128, "vocab_size": 512,
}  # fmt: skip


def main() -> None:
    record = Recorder("layouts")
    real = dist.new_group
    dist.new_group = lambda ranks=None, *_, backend=None, **__: real(ranks)  # every group without peers
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    for name, parallel in {
        "8B, 64 ranks, tensor 2": {"tensor_parallel": 2, "zero_stage": 1},
        "8B, 64 ranks, tensor 8": {"tensor_parallel": 8, "zero_stage": 1},
    }.items():
        record.attempt(name, lambda p=parallel: one_rank(record, p))  # type: ignore[misc]


def one_rank(record: Recorder, parallel: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward of one micro-batch, without DeepSpeed: weights in bf16, and their gradients."""
    length = 64 if record.toy else 8192
    config = PretrainConfig.model_validate(
        {
            "run": {"name": "layout"},
            "model": TOY if record.toy else LLAMA_8B,
            "data": {"sequence_length": length, "train": [{"path": "none"}]},
            "training": {"steps": 1, "global_batch_size": 64},
            "parallel": parallel | {"compile": not record.toy},
            "cluster": {"hardware": "cpu" if record.toy else "h100-sxm", "nodes": 8, "gpus_per_node": 8},
        }
    )
    plan = make_plan(config).chosen
    config = resolve(config, plan)
    mesh = Mesh(Topology(world_size=64, tensor_parallel=plan.tensor_parallel))
    model = build_parallel_model(config.model, config.parallel, mesh, device=record.device, dtype=torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.zeros(plan.micro_batch_size, length, dtype=torch.int64, device=record.device)

    def work() -> None:
        model(ids, ids).backward()
        model.zero_grad(set_to_none=True)

    milliseconds = record.milliseconds(work, repeats=2)
    options = {
        "sequence_length": length,
        "precision": "bf16",
        "hardware": load_hardware(config.cluster.hardware, 8),
        "compiled": config.parallel.compile,
    }
    planned = estimate_memory(config.model, plan.layout, **options)
    seconds = estimate_step(config.model, plan.layout, ranks_per_node=8, **options)
    return {
        "layout": str(plan.layout),
        "ms": milliseconds,
        "planned_ms": 1e3 * seconds.compute / plan.gradient_accumulation_steps,
        "beyond_weights_bytes": record.peak_bytes(work),
        "planned_activations_bytes": planned.activations,
    }


if __name__ == "__main__":
    main()
