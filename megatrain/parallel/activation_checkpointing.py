"""Trade compute for memory: drop a block's activations in the forward pass and make them again in the backward."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import megatrain.kernels.attention  # noqa: F401 - defines the operators below

Mode = Literal["none", "selective", "full", "offload"]  # offload: full, and activation_offload.py

# What "selective" keeps: results that cost more to make than to store. Everything between them is elementwise.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,  # a linear layer with a bias
    torch.ops.aten._scaled_mm.default,  # in fp8
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.megatrain.document_attention.default,
    torch.ops.megatrain.softcap_attention.default,
    torch.ops._c10d_functional.all_reduce.default,
    torch.ops._c10d_functional.all_gather_into_tensor.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    torch.ops._c10d_functional.all_to_all_single.default,
}


def apply_activation_checkpointing(model: nn.Module, mode: Mode, blocks: int | None = None) -> None:
    """Wrap the forward of blocks, in place; names of parameters do not change.

    Args:
        blocks: so many, from the first: what the last ones keep is released before these recompute. None: all.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # dropout has no state
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in itertools.islice(model.get_submodule("blocks").children(), blocks):
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Tensor], options: dict[str, Any]) -> Callable[..., Tensor]:
    def recomputed(*inputs: Any, **named: Any) -> Tensor:
        out: Tensor = checkpoint(forward, *inputs, **named, **options)
        return out

    return recomputed


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
