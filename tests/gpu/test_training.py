"""A compiled block, and one rank of a training run over NCCL, against plain PyTorch on the CPU."""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
import torch.distributed as dist

from megatrain.config import ModelSection
from megatrain.data.loading.batch import Batch
from megatrain.model.architecture import row_of
from megatrain.model.families.llama.module import Llama
from megatrain.model.initialization import initial_weight, materialize
from megatrain.optim.muon.optimizer import Muon
from megatrain.optim.registry import OptimizerSection
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.activation_offload import offload_block_inputs
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.mesh import Mesh
from megatrain.topology import Topology
from tests.distributed import layouts
from tests.distributed import test_muon as muon
from tests.distributed.layouts import GLOBAL_BATCH, SEQUENCE, Layout
from tests.documents import cu_seqlens_of

DEVICE, BACKEND = "cuda", "nccl"
STEPS = 10


HEAD_SIZE = 64  # that of real models: FlashAttention and cuDNN take it


def section_of_a_gpu() -> ModelSection:
    return layouts.model_section().model_copy(update={"head_dim": HEAD_SIZE})


def model_on_device(*, dtype: torch.dtype, compiled: bool, checkpointing: str) -> Llama:
    section = section_of_a_gpu()
    with torch.device("meta"):
        model = Llama(section)
    materialize(model, lambda name, p: initial_weight(row_of(section, name), 5), DEVICE, dtype)
    apply_activation_checkpointing(model, checkpointing)
    if compiled:
        compile_blocks(model)
    if checkpointing == "offload":
        offload_block_inputs(model)
    return model


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full", "offload"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_compiled_blocks_are_the_eager_ones(dtype, tolerance, packed, checkpointing) -> None:
    ids, labels = (x.to(DEVICE) for x in layouts.global_batch(0))
    cu_seqlens = cu_seqlens_of(layouts.documents()).to(DEVICE) if packed else None
    outcomes = []
    for compiled in (False, True):
        model = model_on_device(dtype=dtype, compiled=compiled, checkpointing=checkpointing if compiled else "none")
        loss = model(ids, labels, cu_seqlens=cu_seqlens)
        loss.backward()
        outcomes.append((loss, [p.grad for p in model.parameters()]))
    (loss, gradients), (compiled_loss, compiled_gradients) = outcomes
    assert math.isclose(loss.item(), compiled_loss.item(), rel_tol=tolerance)
    for got, expected in zip(compiled_gradients, gradients, strict=True):
        assert (got - expected).norm() <= tolerance * expected.norm()


def losses_and_norms(layout: Layout, optimizer: OptimizerSection | None = None) -> list[tuple[float, float]]:
    """Of a run of one rank; in a process of its own, for DeepSpeed keeps its view of the world in globals."""
    from launcher.deepspeed_config import deepspeed_config
    from megatrain.tasks.causal_lm import CausalLM
    from megatrain.train.build import build_engine
    from megatrain.train.weights import initialize_weights

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group(BACKEND, store=dist.HashStore(), rank=0, world_size=1)
    config = layouts.config_of(layout)
    if optimizer is not None:
        config = config.model_copy(update={"optimizer": optimizer})
    mesh = Mesh(Topology(world_size=1))
    engine = build_engine(config, mesh, deepspeed_config(config, world_size=1), CausalLM(), device=DEVICE)
    initialize_weights(engine, config.model, config.run.seed)
    positions = torch.arange(SEQUENCE).repeat(GLOBAL_BATCH, 1)
    measured = []
    for step in range(STEPS):
        ids, labels = layouts.global_batch(step)
        loss = 0.0
        for rows in torch.arange(GLOBAL_BATCH).split(layout.micro_batch):
            batch = Batch(ids[rows], labels[rows], positions[rows], cu_seqlens_of(layouts.documents()[rows]))
            loss += engine.forward_backward(batch, labels.numel()).loss.item()
            norm = engine.step(layouts.rate_at(step))
        measured.append((loss / labels.numel(), norm))
    return measured


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 1e-2)])
def test_a_rank_trains_as_the_plain_process_on_the_cpu(zero, precision, tolerance) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        measured = process.submit(losses_and_norms, Layout(zero, 1, 1, precision)).result()
    expected = layouts.plain_run(precision)[:STEPS]
    for step, ((loss, norm), (want_loss, want_norm)) in enumerate(zip(measured, expected, strict=True)):
        assert math.isclose(loss, want_loss, rel_tol=tolerance), f"loss at step {step}"
        assert math.isclose(norm, want_norm, rel_tol=5 * tolerance), f"gradient norm at step {step}"


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_muon_iterates_in_bf16(zero) -> None:
    """The reference in fp32: a singular value may end a little elsewhere, the loss does not."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        measured = process.submit(losses_and_norms, Layout(zero, 1, 1, "bf16"), muon.SECTION).result()
    expected = muon.plain_run("bf16", tied=False)[:STEPS]
    for step, ((loss, _), (want, _)) in enumerate(zip(measured, expected, strict=True)):
        assert math.isclose(loss, want, rel_tol=1e-2), f"loss at step {step}"


def test_a_step_of_muon_waits_for_nothing() -> None:
    weight = torch.nn.Parameter(torch.randn(64, 96, device=DEVICE))
    vector = torch.nn.Parameter(torch.randn(96, device=DEVICE))
    groups = [{"params": [weight], "hidden_matrix": True}, {"params": [vector], "hidden_matrix": False}]
    optimizer = Muon(groups, lr=1e-2, weight_decay=0.1)
    optimizer.found_inf = torch.zeros((), device=DEVICE)
    before = weight.detach().clone()
    for _ in range(2):
        weight.grad, vector.grad = torch.randn_like(weight), torch.randn_like(vector)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)
