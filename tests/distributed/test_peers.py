"""The same Llama, weights and batches give the same losses under other libraries' parallelism: torch's FSDP2 and tensor
parallelism by DTensor, and DeepSpeed's AutoTP of transformers' Llama."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from megatrain.optim.adamw import AdamWSection
from tests.distributed.layouts import (
    GLOBAL_BATCH,
    RATE,
    SEQUENCE,
    Layout,
    Run,
    global_batch,
    model_section,
    rate_at,
)
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 8
SECTION = model_section()


def batches(data_rank: int, data_parallel: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A replica's rows of a global batch: ids and labels."""
    ids, labels = global_batch(step)
    return ids.chunk(data_parallel)[data_rank], labels.chunk(data_parallel)[data_rank]


def ours(layout: Layout) -> list[float]:
    """Losses of megatrain's engine."""
    from megatrain.data.loading.batch import Batch

    run, losses = Run(layout), []
    for step in range(STEPS):
        loss = torch.zeros(())
        ids, labels = batches(run.mesh.data_rank, layout.data, step)
        for rows in torch.arange(len(ids)).split(layout.micro_batch):
            batch = Batch(ids[rows], labels[rows], torch.arange(SEQUENCE).repeat(len(rows), 1), None)
            loss += run.engine.forward_backward(batch, GLOBAL_BATCH * SEQUENCE).loss
            run.engine.step(rate_at(step))
        dist.all_reduce(loss, group=run.mesh.dp_cp_group)
        losses.append(loss.item() / (GLOBAL_BATCH * SEQUENCE))
    return losses


def plain_model() -> nn.Module:
    from megatrain.model.architecture import row_of
    from megatrain.model.build import build_model
    from megatrain.model.initialization import initial_weight, materialize

    with torch.device("meta"):
        model = build_model(SECTION)
    materialize(model, lambda name, p: initial_weight(row_of(SECTION, name), 5))
    return model


def fsdp2(data_parallel: int, tensor_parallel: int) -> list[float]:
    """Losses of torch's own parallelism around the plain module."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (data_parallel, tensor_parallel), mesh_dim_names=("dp", "tp"))
    model = plain_model()
    plan = {f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")}
    plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")}
    plan |= {"attention.output": RowwiseParallel(), "mlp.down": RowwiseParallel()}
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], plan)
        fully_shard(block, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return trained(model, mesh["dp"].get_local_rank(), data_parallel, mesh["dp"].get_group())


def clip(model: nn.Module, most: float) -> None:
    """`clip_grad_norm_` takes gradients of one mesh only; here are sharded ones, and sharded and sliced ones."""
    meshes: dict[object, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        meshes.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in group]) for group in meshes.values()]
    whole = torch.stack([norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]).norm()
    for group in meshes.values():
        torch.nn.utils.clip_grads_with_norm_(group, most, whole)


def trained(model: nn.Module, data_rank: int, data_parallel: int, group: dist.ProcessGroup) -> list[float]:
    config = AdamWSection(learning_rate=RATE)
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=config.betas, eps=config.eps, foreach=False)
    losses = []
    for step in range(STEPS):
        ids, labels = batches(data_rank, data_parallel, step)
        loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten())  # averaged over replicas
        loss.backward()
        clip(model, config.gradient_clipping)
        for group_ in optimizer.param_groups:
            group_["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean, group=group)
        losses.append(mean.item() / data_parallel)
    return losses


def autotp(tensor_parallel: int, zero_stage: int) -> list[float]:
    """Losses of transformers' Llama, sliced by DeepSpeed."""
    import deepspeed
    from transformers import AutoConfig, LlamaForCausalLM

    from megatrain.huggingface.config_json import config_json
    from megatrain.huggingface.names import to_huggingface

    fields = config_json(SECTION, max_position_embeddings=SEQUENCE)
    model = LlamaForCausalLM(AutoConfig.for_model(**fields))
    model.load_state_dict(to_huggingface(plain_model().state_dict(), SECTION), strict=True)
    config = AdamWSection(learning_rate=RATE)
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    settings = {
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "tensor_parallel": {"autotp_size": tensor_parallel},
    }
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=config.betas, eps=config.eps, foreach=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    assert engine.module.model.layers[0].mlp.gate_proj.weight.shape[0] == SECTION.intermediate_size // tensor_parallel
    losses = []
    for step in range(STEPS):
        ids, labels = global_batch(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate_at(step)
        loss = torch.nn.functional.cross_entropy(engine(ids).logits.flatten(0, 1), labels.flatten())
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def test_deepspeeds_autotp(ranks: RankPool) -> None:
    expected = ranks.run(2, autotp, 2, 1)[0]
    assert ranks.run(2, ours, Layout(1, 2, 1))[0] == pytest.approx(expected, rel=2e-6)


def test_fsdp2_with_tensor_parallelism(ranks: RankPool) -> None:
    expected = ranks.run(4, fsdp2, 2, 2)[0]
    for layout in (Layout(1, 2, 2), Layout(3, 1, 2)):
        assert ranks.run(layout.world_size, ours, layout)[0] == pytest.approx(expected, rel=2e-6), layout
