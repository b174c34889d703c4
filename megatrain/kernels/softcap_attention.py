"""Attention whose scores have a soft cap c: c·tanh(score / c) (Gemma 2, arXiv 2408.00118, section 2).

No fused kernel that torch calls has one: SDPA, varlen and flash attention on a CPU apply the softmax to scores as they
are. This is one operator of torch's own products, on any device: a run of queries of one sequence at a time, against
the keys that they may see, so that memory grows with the length and not with its square. The backward pass makes the
scores again. The cap and the softmax are in fp32. The host does not wait for where documents begin.

Shape suffixes: S sequence, H heads, G key-value heads, K head size, R = (H/G)·queries, T keys.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatrain.model.window import Window

QUERIES = 256  # at once


def softcap_attention(
    q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, cu_seqlens: Tensor, window: Window, scale: float, softcap: float
) -> Tensor:
    """As `kernels.attention.attention`; scores are capped behind their scale."""
    out, _ = torch.ops.megatrain.softcap_attention(q_BSHK, k_BSGK, v_BSGK, cu_seqlens, *window, scale, softcap)
    return out


def attend(
    q_BSHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """The attention, and its log-sum-exp [B, H, S] in fp32, for the backward pass."""
    batch, length, heads, _ = q_BSHK.shape
    out_BSHK = torch.empty_like(q_BSHK)
    logsumexp_BHS = torch.empty(batch, heads, length, dtype=torch.float32, device=q_BSHK.device)
    for row, queries, keys, hidden in _pieces(q_BSHK, cu_seqlens, left, right):
        q_GRK, k_GTK, v_GTK = _grouped(q_BSHK, k_BSGK, v_BSGK, row, queries, keys)
        out_GRK, logsumexp_GR = _piece((q_GRK, k_GTK, v_GTK), hidden, scale, softcap)
        out_BSHK[row, queries] = _ungrouped(out_GRK, heads)
        logsumexp_BHS[row, :, queries] = logsumexp_GR.view(heads, -1)
    return out_BSHK, logsumexp_BHS


def _piece(
    inputs: tuple[Tensor, Tensor, Tensor], hidden: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    q_GRK, k_GTK, v_GTK = inputs
    scores_GRT = _capped(q_GRK @ k_GTK.transpose(1, 2), scale, softcap)
    queries, keys = hidden.shape
    scores_GRT.view(-1, queries, keys).masked_fill_(hidden, float("-inf"))
    logsumexp_GR = scores_GRT.logsumexp(-1)
    weights_GRT = scores_GRT.sub_(logsumexp_GR[..., None]).exp_().to(q_GRK.dtype)
    return weights_GRT @ v_GTK, logsumexp_GR


_forward = torch.library.custom_op("megatrain::softcap_attention", attend, mutates_args=())


@_forward.register_fake
def _(
    q_BSHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q_BSHK.shape
    return torch.empty_like(q_BSHK), q_BSHK.new_empty(batch, heads, length, dtype=torch.float32)


def attend_backward(
    grad_BSHK: Tensor,
    q_BSHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    out_BSHK: Tensor,
    logsumexp_BHS: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    heads = q_BSHK.shape[2]
    grad_q = q_BSHK.new_empty(q_BSHK.shape)
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_BSGK, v_BSGK))
    for row, queries, keys, hidden in _pieces(q_BSHK, cu_seqlens, left, right):
        q_GRK, k_GTK, v_GTK = _grouped(q_BSHK, k_BSGK, v_BSGK, row, queries, keys)
        grad_GRK, _, _ = _grouped(grad_BSHK, k_BSGK, v_BSGK, row, queries, keys)
        out_GRK, _, _ = _grouped(out_BSHK, k_BSGK, v_BSGK, row, queries, keys)
        logsumexp_GR = logsumexp_BHS[row, :, queries].reshape(q_GRK.shape[:2])
        outputs = (grad_GRK, out_GRK, logsumexp_GR)
        parts = _piece_backward((q_GRK, k_GTK, v_GTK), outputs, hidden, scale, softcap)
        grad_q[row, queries] = _ungrouped(parts[0], heads)
        grad_k[row, keys] += parts[1].transpose(0, 1)
        grad_v[row, keys] += parts[2].transpose(0, 1)
    return grad_q, grad_k.to(k_BSGK.dtype), grad_v.to(v_BSGK.dtype)


def _piece_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor],
    hidden: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With p = softmax(z), z = c·tanh(s/c): dz = p·(dp − Σ p·dp), ds = dz·(1 − (z/c)²)."""
    (q_GRK, k_GTK, v_GTK), (grad_GRK, out_GRK, logsumexp_GR) = inputs, outputs
    scores_GRT = _capped(q_GRK @ k_GTK.transpose(1, 2), scale, softcap)
    slope_GRT = (scores_GRT / softcap).square_().neg_().add_(1.0)
    weights_GRT = scores_GRT.sub_(logsumexp_GR[..., None]).exp_()
    queries, keys = hidden.shape
    weights_GRT.view(-1, queries, keys).masked_fill_(hidden, 0.0)
    grad_v_GTK = weights_GRT.to(q_GRK.dtype).transpose(1, 2) @ grad_GRK
    inner_GR = (grad_GRK.float() * out_GRK.float()).sum(-1)
    grad_weights_GRT = (grad_GRK @ v_GTK.transpose(1, 2)).float()
    scores_grad_GRT = weights_GRT.mul_(grad_weights_GRT.sub_(inner_GR[..., None])).mul_(slope_GRT).mul_(scale)
    grad_GRT = scores_grad_GRT.to(q_GRK.dtype)
    return grad_GRT @ k_GTK, grad_GRT.transpose(1, 2) @ q_GRK, grad_v_GTK


_backward = torch.library.custom_op("megatrain::softcap_attention_backward", attend_backward, mutates_args=())


@_backward.register_fake
def _(
    grad_BSHK: Tensor,
    q_BSHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    out_BSHK: Tensor,
    logsumexp_BHS: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BSHK.new_empty(q_BSHK.shape), k_BSGK.new_empty(k_BSGK.shape), v_BSGK.new_empty(v_BSGK.shape)


def _pieces(q_BSHK: Tensor, cu_seqlens: Tensor, left: int, right: int) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """(sequence, its queries, the keys that one of them may see, bool [queries, keys]: which a query does not see)."""
    batch, length = q_BSHK.shape[:2]
    places = torch.arange(batch * length, device=q_BSHK.device, dtype=cu_seqlens.dtype)
    document_BS = torch.bucketize(places, cu_seqlens, right=True).view(batch, length)
    for row in range(batch):
        for first in range(0, length, QUERIES):
            end = min(first + QUERIES, length)
            begin = 0 if left < 0 else max(0, first - left)
            stop = length if right < 0 else min(length, end + right)
            behind = places[None, begin:stop] - places[first:end, None]
            hidden = document_BS[row, first:end, None] != document_BS[row, None, begin:stop]
            if left >= 0:
                hidden |= behind < -left
            if right >= 0:
                hidden |= behind > right
            yield row, slice(first, end), slice(begin, stop), hidden


def _grouped(
    q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, row: int, queries: slice, keys: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """[G, R, K], [G, T, K] twice: the queries of a group's heads, one head after the other, beside its keys."""
    groups, size = k_BSGK.shape[2:]
    q_HSK = q_BSHK[row, queries].transpose(0, 1)
    return q_HSK.reshape(groups, -1, size), k_BSGK[row, keys].transpose(0, 1), v_BSGK[row, keys].transpose(0, 1)


def _ungrouped(x_GRK: Tensor, heads: int) -> Tensor:
    """[queries, H, K]."""
    return x_GRK.reshape(heads, -1, x_GRK.shape[-1]).transpose(0, 1)


def _capped(products: Tensor, scale: float, softcap: float) -> Tensor:
    return (products.float() * (scale / softcap)).tanh_().mul_(softcap)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.pattern = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, grad_BSHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor, ...] = torch.ops.megatrain.softcap_attention_backward(
        grad_BSHK.contiguous(), *ctx.saved_tensors, *ctx.pattern
    )
    return *grads, *[None] * 5


_forward.register_autograd(_differentiate, setup_context=_save)
