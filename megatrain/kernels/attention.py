"""Causal attention that can keep documents of one sample apart.

What masks it decides the backend: no documents is SDPA's causal path (flash or cuDNN on a GPU); documents are a
FlexAttention block mask on a GPU, which skips the masked blocks, and a dense mask on a CPU.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask = "Tensor | BlockMask | None"


def attention_mask(document_ids_BS: Tensor | None) -> Any:
    """What `attention` needs to keep documents apart; built once for all layers. None for plain causal attention.

    Args:
        document_ids_BS: int32; positions with equal ids may see each other.
    """
    if document_ids_BS is None:
        return None
    if document_ids_BS.is_cuda:
        return _block_mask(document_ids_BS)
    size = document_ids_BS.shape[1]
    causal_SS = torch.ones(size, size, dtype=torch.bool, device=document_ids_BS.device).tril()
    same_BSS = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    return (same_BSS & causal_SS)[:, None]


def attention(q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, mask: Any = None) -> Tensor:
    """Scaled dot-product attention over earlier positions; [B, S, H, K] in and out.

    Grouped queries: k and v may have fewer heads, dividing q's. Scale 1/√K.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BSHK, k_BSHK, v_BSHK))
    grouped = q.shape[1] != k.shape[1]
    if mask is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif isinstance(mask, Tensor):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    else:
        out = _flex_attention()(q, k, v, block_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)


def attention_reference(
    q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, document_ids_BS: Tensor | None = None
) -> Tensor:
    groups = q_BSHK.shape[2] // k_BSHK.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2).float() for x in (k_BSHK, v_BSHK))
    scores_BHSS = torch.einsum("bqhk,bshk->bhqs", q_BSHK.float(), k) / math.sqrt(q_BSHK.shape[-1])
    size = q_BSHK.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool, device=q_BSHK.device).tril()[None]
    if document_ids_BS is not None:
        allowed = allowed & (document_ids_BS[:, :, None] == document_ids_BS[:, None, :])
    weights = scores_BHSS.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhqs,bshk->bqhk", weights, v).to(q_BSHK.dtype)


def _block_mask(document_ids_BS: Tensor) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (document_ids_BS[b, q] == document_ids_BS[b, kv])

    batch, size = document_ids_BS.shape
    return create_block_mask(visible, batch, None, size, size, device=document_ids_BS.device.type)


@lru_cache(maxsize=1)
def _flex_attention() -> Any:
    """FlexAttention is only fused when compiled, whether or not the block around it is."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
