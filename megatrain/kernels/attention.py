"""Causal attention within documents, linear in memory: what the documents of a batch are is a list of boundaries.

    cu_seqlens   int32 [documents + 1]: where each document begins in the flattened batch, and last its end, B·S

It is what FlashAttention's varlen kernels take. Nothing of size S² is ever made, on any backend:

    no boundaries        SDPA's causal path (flash or cuDNN on a GPU)
    a GPU, half          torch's varlen attention: FlashAttention per document
    a GPU, fp32          a memory-efficient kernel per document
    a CPU                one flash attention per document, as an operator that a compiled graph does not look into
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_HEAD_MULTIPLE = 8  # FlashAttention takes head sizes that are multiples of it


def attention(q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over earlier positions of the same document; [B, S, H, K] in and out.

    Grouped queries: k and v may have fewer heads, dividing q's. Scale 1/√K.

    Args:
        cu_seqlens: int32 [documents + 1], ascending, of the flattened batch; see above. No document lies in two
            sequences. Default: a sequence is one document.
    """
    if cu_seqlens is None:
        return _whole_sequences(q_BSHK, k_BSHK, v_BSHK)
    q, k, v = (x.flatten(0, 1) for x in (q_BSHK, k_BSHK, v_BSHK))
    if q.is_cpu:
        out, _ = torch.ops.megatrain.document_attention(q, k, v, cu_seqlens)
    elif q.dtype == torch.float32:
        out = _one_by_one(q, k, v, cu_seqlens)
    else:
        out = _varlen(q, k, v, cu_seqlens, longest=q_BSHK.shape[1])
    return out.view_as(q_BSHK)


def attention_reference(q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    batch, size, heads, _ = q_BSHK.shape
    k, v = (x.repeat_interleave(heads // k_BSHK.shape[2], dim=2).float() for x in (k_BSHK, v_BSHK))
    scores_BHSS = torch.einsum("bqhk,bshk->bhqs", q_BSHK.float(), k) / math.sqrt(q_BSHK.shape[-1])
    allowed = torch.ones(size, size, dtype=torch.bool, device=q_BSHK.device).tril()[None]
    if cu_seqlens is not None:
        places = torch.arange(batch * size, device=q_BSHK.device, dtype=torch.int32)
        document_BS = torch.bucketize(places, cu_seqlens, right=True).view(batch, size)
        allowed = allowed & (document_BS[:, :, None] == document_BS[:, None, :])
    weights = scores_BHSS.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhqs,bshk->bqhk", weights, v).to(q_BSHK.dtype)


def _whole_sequences(q_BSHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BSHK, k_BSHK, v_BSHK))
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.dtype == torch.float32 and not q.is_cpu:
        # on a GPU no fused fp32 kernel takes grouped queries: SDPA would make all S² scores
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        groups = 1
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1).transpose(1, 2)


def _varlen(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, *, longest: int) -> Tensor:
    """`longest` is the sequence length and not the longest document's, which only the device knows."""
    size, scale = q_NHK.shape[-1], 1 / math.sqrt(q_NHK.shape[-1])
    if padding := -size % _HEAD_MULTIPLE:  # zeros change neither scores nor what is cut off again
        q_NHK, k_NGK, v_NGK = (F.pad(x, (0, padding)) for x in (q_NHK, k_NGK, v_NGK))
    bounds = (cu_seqlens, cu_seqlens, longest, longest)
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}  # all that is to the left, nothing to the right
    if q_NHK.shape[1] != k_NGK.shape[1]:
        options["enable_gqa"] = True
    out: Any = varlen_attn(q_NHK, k_NGK, v_NGK, *bounds, **options)
    return out[..., :size]


@torch.compiler.disable
def _one_by_one(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor) -> Tensor:
    """For fp32 on a GPU, which no varlen kernel takes: a kernel per document, and a wait for where they begin."""
    documents = [
        _whole_sequences(*(x[None, first:end] for x in (q_NHK, k_NGK, v_NGK)))[0]
        for first, end in _documents(cu_seqlens)
    ]
    return torch.cat(documents)


@torch.library.custom_op("megatrain::document_attention", mutates_args=(), device_types="cpu")
def _document_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of each document by itself, and its log-sum-exp [N, H] in fp32, for the backward pass."""
    out_NHK = torch.empty_like(q_NHK)
    logsumexp_NH = torch.empty(q_NHK.shape[:2], dtype=torch.float32)
    for first, end in _documents(cu_seqlens):
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(_heads_first(x, first, end) for x in (q_NHK, k_NGK, v_NGK)), 0.0, True
        )
        out_NHK[first:end] = out[0].transpose(0, 1)
        logsumexp_NH[first:end] = logsumexp[0].T
    return out_NHK, logsumexp_NH


@_document_attention.register_fake
def _(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_NHK), q_NHK.new_empty(q_NHK.shape[:2], dtype=torch.float32)


@torch.library.custom_op("megatrain::document_attention_backward", mutates_args=(), device_types="cpu")
def _document_attention_backward(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    out_NHK: Tensor,
    logsumexp_NH: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _empty_like_contiguous(q_NHK, k_NGK, v_NGK)
    for first, end in _documents(cu_seqlens):
        inputs = (_heads_first(x, first, end) for x in (grad_NHK, q_NHK, k_NGK, v_NGK, out_NHK))
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *inputs, logsumexp_NH[first:end].T[None], 0.0, True
        )
        for grad, part in zip(grads, parts, strict=True):
            grad[first:end] = part[0].transpose(0, 1)
    return grads


@_document_attention_backward.register_fake
def _(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    out_NHK: Tensor,
    logsumexp_NH: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_contiguous(q_NHK, k_NGK, v_NGK)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, grad_NHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor, ...] = torch.ops.megatrain.document_attention_backward(
        grad_NHK.contiguous(), *ctx.saved_tensors
    )
    return *grads, None


_document_attention.register_autograd(_differentiate, setup_context=_save)


def _documents(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    return [(first, end) for first, end in pairwise(cu_seqlens.tolist()) if first < end]


def _empty_like_contiguous(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _heads_first(x_NHK: Tensor, first: int, end: int) -> Tensor:
    """The rows of one document as SDPA takes them: [1, H, n, K]."""
    return x_NHK[first:end].transpose(0, 1)[None]
