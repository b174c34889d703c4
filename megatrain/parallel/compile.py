"""Compile block by block: every block has the same graph, so it is compiled once, whatever the depth."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

RECOMPILE_LIMIT = 64  # graphs of a block: lengths of a curriculum, evaluation, with and without gradients


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block's forward, and on a GPU the head's loss, in place; names of parameters do not change.

    The forward and not the module's call: hooks on the block itself, such as ZeRO-3's gathering, stay out of the graph.
    Shapes are static, for kernels are slower that admit any size; only the number of documents in a batch is not. Where
    more graphs are needed than RECOMPILE_LIMIT, an error says so: torch would go on uncompiled.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    head = model.get_submodule("head")
    head.compiled = next(head.parameters()).device.type == "cuda"  # type: ignore[assignment]
    for block in model.get_submodule("blocks").children():
        block.forward = _for_any_documents(torch.compile(block.forward, dynamic=False, backend=backend))


def _for_any_documents(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's last input is `cu_seqlens`, or None; somebody else's block has them where a mask would be."""

    def forward(*inputs: Any, **named: Any) -> Tensor:
        bounds = inputs[-1] if inputs and not named else named.get("attention_mask")
        if isinstance(bounds, Tensor) and bounds.dtype == torch.int32:
            torch._dynamo.mark_dynamic(bounds, bounds.ndim - 1)
        return compiled(*inputs, **named)

    return forward
