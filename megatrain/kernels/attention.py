"""Attention within documents, linear in memory: what the documents of a batch are is a list of boundaries.

    cu_seqlens   int32 [documents + 1]: where each document begins in the flattened batch, and last its end, B·S

It is what FlashAttention's varlen kernels take, and so is the window: how many positions before and behind it one
sees, -1 for all (megatrain/model/window.py). Nothing of size S² is ever made, on any backend, and what a window hides
is not computed:

    no boundaries        SDPA (flash or cuDNN on a GPU); with a window, each sequence is a document
    a GPU, half          torch's varlen attention: FlashAttention per document
    a GPU, fp32          a memory-efficient kernel per tile of document_attention.py
    a CPU                the operator of document_attention.py
    a soft cap           the operator of softcap_attention.py
"""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from megatrain.kernels.document_attention import document_attention, tiles
from megatrain.kernels.softcap_attention import softcap_attention
from megatrain.model.window import BIDIRECTIONAL, CAUSAL, Window, effective

_HEAD_MULTIPLE = 8  # FlashAttention takes head sizes that are multiples of it
# torch 2.11 takes grouped queries without being asked
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attention(
    q_BSHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    window: Window = CAUSAL,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Scaled dot-product attention over positions of the same document; [B, S, H, K] in and out.

    Grouped queries: k and v may have fewer heads, dividing q's.

    Args:
        cu_seqlens: int32 [documents + 1], ascending, of the flattened batch; see above. No document lies in two
            sequences. Default: a sequence is one document.
        window: which positions of its document a position sees; default: itself and all before it.
        scale: of the scores; default: 1/√K.
        softcap: c of c·tanh(score / c), behind the scale; None: there is none.
    """
    batch, size = q_BSHK.shape[:2]
    scale = 1 / math.sqrt(q_BSHK.shape[-1]) if scale is None else scale
    window = effective(window, size)
    if cu_seqlens is None:
        if softcap is None and window in (CAUSAL, BIDIRECTIONAL):
            return _whole_sequences(q_BSHK, k_BSHK, v_BSHK, window, scale)
        cu_seqlens = torch.arange(0, batch * size + 1, size, dtype=torch.int32, device=q_BSHK.device)
    if softcap is not None:
        return softcap_attention(q_BSHK, k_BSHK, v_BSHK, cu_seqlens, window, scale, softcap)
    q, k, v = (x.flatten(0, 1) for x in (q_BSHK, k_BSHK, v_BSHK))
    if q.is_cpu:
        out = document_attention(q, k, v, cu_seqlens, window, scale)
    elif q.dtype == torch.float32:
        out = _one_by_one(q, k, v, cu_seqlens, window, scale)
    else:
        out = _varlen(q, k, v, cu_seqlens, window, scale, longest=size)
    return out.view_as(q_BSHK)


def attend_to(
    q_BSHK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask_BST: Tensor | None, *, scale: float | None = None
) -> Tensor:
    """Attention of a few positions to the T places of a cache; [B, S, H, K] in and out.

    The heads of a group are rows of one query, so that keys and values are read once and never repeated.

    Args:
        mask_BST: bool, which places a position sees; None: all.
    """
    batch, size, heads, width = q_BSHK.shape
    groups = k_BGTK.shape[1]
    q = q_BSHK.view(batch, size, groups, heads // groups, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = None if mask_BST is None else mask_BST.repeat(1, heads // groups, 1)[:, None]
    scale = 1 / math.sqrt(width) if scale is None else scale
    out = F.scaled_dot_product_attention(q, k_BGTK, v_BGTK, mask, scale=scale)
    return out.unflatten(2, (heads // groups, size)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def attention_reference(
    q_BSHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    window: Window = CAUSAL,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    batch, size, heads, width = q_BSHK.shape
    k, v = (x.repeat_interleave(heads // k_BSHK.shape[2], dim=2).float() for x in (k_BSHK, v_BSHK))
    scores_BHSS = torch.einsum("bqhk,bshk->bhqs", q_BSHK.float(), k) * (scale or 1 / math.sqrt(width))
    if softcap is not None:
        scores_BHSS = softcap * torch.tanh(scores_BHSS / softcap)
    left, right = (size if side < 0 else side for side in window)
    places = torch.arange(size, device=q_BSHK.device)
    behind = places[None, :] - places[:, None]
    allowed = ((behind >= -left) & (behind <= right))[None]
    if cu_seqlens is not None:
        flat = torch.arange(batch * size, device=q_BSHK.device, dtype=torch.int32)
        document_BS = torch.bucketize(flat, cu_seqlens, right=True).view(batch, size)
        allowed = allowed & (document_BS[:, :, None] == document_BS[:, None, :])
    weights = scores_BHSS.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhqs,bshk->bqhk", weights, v).to(q_BSHK.dtype)


def _whole_sequences(q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, window: Window, scale: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BSHK, k_BSHK, v_BSHK))
    return _fused(q, k, v, None, window == CAUSAL, scale).transpose(1, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """SDPA of [B, H, S, K]."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.dtype == torch.float32 and not q.is_cpu:
        # on a GPU no fused fp32 kernel takes grouped queries: SDPA would make all S² scores
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        groups = 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=groups > 1)


def _varlen(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, window: Window, scale: float, *, longest: int
) -> Tensor:
    """`longest` is the sequence length and not the longest document's, which only the device knows."""
    size = q_NHK.shape[-1]
    if padding := -size % _HEAD_MULTIPLE:  # zeros change neither scores nor what is cut off again
        q_NHK, k_NGK, v_NGK = (F.pad(x, (0, padding)) for x in (q_NHK, k_NGK, v_NGK))
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    options: dict[str, Any] = {"scale": scale, "window_size": window}
    if q_NHK.shape[1] != k_NGK.shape[1]:
        options |= _GROUPED
    out: Any = varlen_attn(q_NHK, k_NGK, v_NGK, *bounds, **options)
    return out[..., :size]


@torch.compiler.disable
def _one_by_one(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, window: Window, scale: float
) -> Tensor:
    """For fp32 on a GPU, which no varlen kernel takes: a kernel per tile, and a wait for where documents begin."""
    parts = []
    for tile in tiles(cu_seqlens, window):
        q, k, v = (_heads_first(x[rows]) for x, rows in ((q_NHK, tile.queries), (k_NGK, tile.keys), (v_NGK, tile.keys)))
        parts.append(_fused(q, k, v, tile.mask(q), tile.is_causal, scale)[0].transpose(0, 1))
    return torch.cat(parts)


def _heads_first(x_NHK: Tensor) -> Tensor:
    """As SDPA takes them: [1, H, N, K]."""
    return x_NHK.transpose(0, 1)[None]
