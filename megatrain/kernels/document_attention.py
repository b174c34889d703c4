"""Attention within documents on a CPU: torch's flash attention, tile by tile.

A tile is a run of queries and the keys that they see. A document that is seen as a whole, or causally, is one tile; of
one that is longer than a window each tile has as many queries as the window is wide, so that time and memory grow with
the length and not with its square.

It is one operator, which a compiled graph does not look into: the number of documents may differ from batch to batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatrain.model.window import BIDIRECTIONAL, CAUSAL, Window, effective

_SHORTEST_TILE = 64  # queries: smaller ones cost more calls than they save


@dataclass(frozen=True, slots=True)
class Tile:
    queries: slice
    keys: slice
    window: Window  # CAUSAL and BIDIRECTIONAL need no mask

    @property
    def is_causal(self) -> bool:
        return self.window == CAUSAL

    def mask(self, like: Tensor) -> Tensor | None:
        """What is added to scores, [queries, keys]: 0 where a query sees a key, else -inf."""
        if self.window in (CAUSAL, BIDIRECTIONAL):
            return None
        rows = torch.arange(self.queries.start, self.queries.stop, device=like.device)
        columns = torch.arange(self.keys.start, self.keys.stop, device=like.device)
        behind = columns[None, :] - rows[:, None]
        left, right = self.window
        hidden = torch.zeros_like(behind, dtype=torch.bool)
        if left >= 0:
            hidden |= behind < -left
        if right >= 0:
            hidden |= behind > right
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def tiles(cu_seqlens: Tensor, window: Window) -> Iterator[Tile]:
    """Of all documents, in their order; every position is a query once."""
    for first, end in pairwise(cu_seqlens.tolist()):
        if first < end:
            yield from _tiles_of(first, end, window)


def _tiles_of(first: int, end: int, window: Window) -> Iterator[Tile]:
    whole = effective(window, end - first)
    if whole in (CAUSAL, BIDIRECTIONAL):
        yield Tile(slice(first, end), slice(first, end), whole)
        return
    left, right = window
    size = max(left + 1, right + 1, _SHORTEST_TILE)
    for at in range(first, end, size):
        after = min(at + size, end)
        begin = first if left < 0 else max(first, at - left)
        stop = end if right < 0 else min(end, after + right)
        yield Tile(slice(at, after), slice(begin, stop), window)


def document_attention(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, window: Window, scale: float
) -> Tensor:
    """Scaled dot-product attention of N flattened positions within documents, as `kernels.attention.attention`."""
    out, _ = torch.ops.megatrain.document_attention(q_NHK, k_NGK, v_NGK, cu_seqlens, *window, scale)
    return out


@torch.library.custom_op("megatrain::document_attention", mutates_args=(), device_types="cpu")
def _forward(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The attention, and its log-sum-exp [N, H] in fp32, for the backward pass."""
    out_NHK = torch.empty_like(q_NHK)
    logsumexp_NH = torch.empty(q_NHK.shape[:2], dtype=torch.float32)
    for tile in tiles(cu_seqlens, (left, right)):
        inputs = (_heads_first(q_NHK, tile.queries), _heads_first(k_NGK, tile.keys), _heads_first(v_NGK, tile.keys))
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *inputs, 0.0, tile.is_causal, attn_mask=tile.mask(q_NHK), scale=scale
        )
        out_NHK[tile.queries] = out[0].transpose(0, 1)
        logsumexp_NH[tile.queries] = logsumexp[0].T
    return out_NHK, logsumexp_NH


@_forward.register_fake
def _(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, cu_seqlens: Tensor, left: int, right: int, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_NHK), q_NHK.new_empty(q_NHK.shape[:2], dtype=torch.float32)


@torch.library.custom_op("megatrain::document_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    out_NHK: Tensor,
    logsumexp_NH: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q = q_NHK.new_empty(q_NHK.shape)
    # keys of a window are seen from several tiles, whose parts are summed
    kept = k_NGK.dtype if (left, right) in (CAUSAL, BIDIRECTIONAL) else torch.float32
    grad_k, grad_v = (torch.zeros(x.shape, dtype=kept) for x in (k_NGK, v_NGK))
    for tile in tiles(cu_seqlens, (left, right)):
        rows = (tile.queries, tile.queries, tile.keys, tile.keys, tile.queries)
        inputs = (_heads_first(x, of) for x, of in zip((grad_NHK, q_NHK, k_NGK, v_NGK, out_NHK), rows, strict=True))
        part_q, part_k, part_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *inputs,
            logsumexp_NH[tile.queries].T[None],
            0.0,
            tile.is_causal,
            attn_mask=tile.mask(q_NHK),
            scale=scale,
        )
        grad_q[tile.queries] = part_q[0].transpose(0, 1)
        grad_k[tile.keys] += part_k[0].transpose(0, 1)
        grad_v[tile.keys] += part_v[0].transpose(0, 1)
    return grad_q, grad_k.to(k_NGK.dtype), grad_v.to(v_NGK.dtype)


@_backward.register_fake
def _(
    grad_NHK: Tensor,
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    out_NHK: Tensor,
    logsumexp_NH: Tensor,
    cu_seqlens: Tensor,
    left: int,
    right: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_NHK.new_empty(q_NHK.shape), k_NGK.new_empty(k_NGK.shape), v_NGK.new_empty(v_NGK.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.pattern = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, grad_NHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor, ...] = torch.ops.megatrain.document_attention_backward(
        grad_NHK.contiguous(), *ctx.saved_tensors, *ctx.pattern
    )
    return *grads, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _heads_first(x_NHK: Tensor, rows: slice) -> Tensor:
    """The rows as SDPA takes them: [1, H, n, K]."""
    return x_NHK[rows].transpose(0, 1)[None]
