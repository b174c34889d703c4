"""Megatrain's attention in models of `transformers`, by its interface for attention functions.

Boundaries of documents travel where a mask would: a model hands a mask of four dimensions on to each layer as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from megatrain.kernels.attention import attention
from megatrain.model.window import CAUSAL, causal_window

NAME = "megatrain"

# What models hand to an attention function that changes nothing of it; position_ids are in queries and keys already.
_WITHOUT_EFFECT = {
    "cache_position",
    "dropout",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "use_cache",
}
_KNOWN = _WITHOUT_EFFECT | {"scaling", "sliding_window", "softcap", "is_causal"}


def as_mask(cu_seqlens: Tensor) -> Tensor:
    """[1, 1, 1, documents + 1]."""
    return cu_seqlens[None, None, None]


def attend(
    module: nn.Module,
    query_BHSK: Tensor,
    key_BGSK: Tensor,
    value_BGSK: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: [B, S, H, K], and no weights.

    Args:
        attention_mask: `as_mask` of the boundaries, or None.
        sliding_window: positions that one sees, itself included.
    """
    q, k, v = (x.transpose(1, 2) for x in (query_BHSK, key_BGSK, value_BGSK))
    cu_seqlens = None if attention_mask is None else attention_mask.flatten()
    window = CAUSAL if sliding_window is None else causal_window(sliding_window)
    return attention(q, k, v, cu_seqlens, window=window, scale=scaling, softcap=softcap), None


def misfit(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> str | None:
    """Why `attend` would not compute what a model asks for; None: it does."""
    if mask is None or mask.dtype != torch.int32:
        return "it makes masks of its own"
    if not (query.shape[-1] == key.shape[-1] == value.shape[-1] and query.shape[2] == key.shape[2]):
        return "its queries and values are of different sizes"
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return "it is not causal"
    other = sorted(name for name, value in options.items() if name not in _KNOWN and value is not None)
    return f"it has {other[0]}" if other else None


def register() -> None:
    AttentionInterface.register(NAME, attend)
