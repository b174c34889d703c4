"""The vocabulary projection and its cross-entropy as one op that never holds all logits.

A vocabulary of 128k makes the logits of 8k tokens 4 GiB in fp32, and their gradient as much again. The op walks over
chunks of tokens; for each it makes the logits, the loss and, at once, the gradients, and keeps only the gradients of
its two inputs (the idea of Liger Kernel, arXiv 2410.10989, section 3.2). It works on a slice of the vocabulary as well:
the slices agree on each token's maximum and sum through two small reductions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
CHUNK_TOKENS = 1024  # whose logits are held at once, in fp32 and once more in the dtype of the inputs
COMPILED_CHUNK_TOKENS = 4096  # compiled, logits and their gradient are held in the dtype of the inputs only


class Reduce(Protocol):
    def __call__(self, x: Tensor, op: str) -> Tensor:
        """Reduce over the ranks that hold the other slices; op is "sum" or "max"."""
        ...


@dataclass(frozen=True, slots=True)
class VocabSlice:
    """The rows of the vocabulary that this rank's weight holds, and how to agree with the other slices."""

    start: int
    reduce: Reduce


LossAndGrad = Callable[[Tensor, Tensor, Tensor, VocabSlice | None], tuple[Tensor, Tensor]]


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    vocab: VocabSlice | None = None,
    *,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden · weightᵀ)[label], a fp32 scalar.

    Args:
        hidden_ND: fp32 or bf16.
        weight_VD: dtype of hidden_ND; all rows, or with `vocab` this rank's slice. Its gradient is summed in fp32.
        labels_N: int64, IGNORE_INDEX where there is no target. Over a slice, labels are still global ids.
        vocab: where the slice lies. The gradient of hidden_ND is then this slice's share of it: sum it over ranks.
        chunk: tokens at a time; default: CHUNK_TOKENS, or COMPILED_CHUNK_TOKENS.
        compiled: fuse what surrounds the products by torch.compile: for a GPU, where it is bound by memory.
    """
    wanted = torch.is_grad_enabled()  # inside a Function's forward it is always off
    chunk = chunk or (COMPILED_CHUNK_TOKENS if compiled else CHUNK_TOKENS)
    part = _compiled_loss_and_grad() if compiled else _loss_and_grad
    loss: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, labels_N, vocab, chunk, part, wanted)
    return loss


def linear_cross_entropy_reference(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy((hidden_ND @ weight_VD.T).float(), labels_N, ignore_index=IGNORE_INDEX, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        vocab: VocabSlice | None,
        chunk: int,
        loss_and_grad: LossAndGrad,
        gradients_wanted: bool,
    ) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        needs_hidden, needs_weight = (gradients_wanted and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        for at in range(0, hidden_ND.shape[0], chunk):
            hidden, labels = hidden_ND[at : at + chunk], labels_N[at : at + chunk]
            part, grad_logits = loss_and_grad(hidden, weight_VD, labels, vocab)
            loss += part
            if grad_hidden is not None:
                grad_hidden[at : at + chunk] = grad_logits @ weight_VD
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden
            del grad_logits  # or it would stand beside the next chunk's logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(scale).to(ctx.weight_dtype)  # in place: a copy is 4 GiB at 128k × 8k
        return grad_hidden, grad_weight, None, None, None, None, None


def _loss_and_grad(
    hidden_nD: Tensor, weight_VD: Tensor, labels_n: Tensor, vocab: VocabSlice | None
) -> tuple[Tensor, Tensor]:
    """Loss of one chunk, and d loss / d logits [n, V] in the dtype of `hidden_nD`."""
    logits_nV = (hidden_nD @ weight_VD.T).float()
    counted_n = labels_n != IGNORE_INDEX
    local_n = labels_n - (vocab.start if vocab else 0)
    here_n = counted_n & (local_n >= 0) & (local_n < logits_nV.shape[1])
    local_n = local_n.where(here_n, torch.zeros_like(local_n))

    maximum_n = logits_nV.amax(-1)
    if vocab:
        maximum_n = vocab.reduce(maximum_n, "max")
    logits_nV -= maximum_n[:, None]
    target_n = logits_nV.gather(1, local_n[:, None])[:, 0] * here_n
    exp_nV = logits_nV.exp_()
    sum_n = exp_nV.sum(-1)
    if vocab:
        sum_n, target_n = vocab.reduce(torch.stack((sum_n, target_n)), "sum")
    loss = ((sum_n.log() - target_n) * counted_n).sum()

    grad_nV = exp_nV.mul_((counted_n / sum_n)[:, None])
    grad_nV.scatter_add_(1, local_n[:, None], -here_n.to(grad_nV.dtype)[:, None])
    return loss, grad_nV.to(hidden_nD.dtype)


def _loss_and_grad_functional(
    hidden_nD: Tensor, weight_VD: Tensor, labels_n: Tensor, vocab: VocabSlice | None
) -> tuple[Tensor, Tensor]:
    """The same bits as `_loss_and_grad`, as expressions that a compiler fuses: fp32 values stay in registers."""
    logits_nV = hidden_nD @ weight_VD.T
    counted_n = labels_n != IGNORE_INDEX
    local_n = labels_n - (vocab.start if vocab else 0)
    target_nV = (torch.arange(logits_nV.shape[1], device=local_n.device) == local_n[:, None]) & counted_n[:, None]

    maximum_n = logits_nV.amax(-1).float()
    if vocab:
        maximum_n = vocab.reduce(maximum_n, "max")
    shifted_nV = logits_nV.float() - maximum_n[:, None]
    sum_n = shifted_nV.exp().sum(-1)
    target_n = torch.where(target_nV, shifted_nV, 0.0).sum(-1)
    if vocab:
        sum_n, target_n = vocab.reduce(torch.stack((sum_n, target_n)), "sum")
    loss = ((sum_n.log() - target_n) * counted_n).sum()

    grad_nV = shifted_nV.exp() * (counted_n / sum_n)[:, None] - target_nV.float()
    return loss, grad_nV.to(hidden_nD.dtype)


@lru_cache(maxsize=1)
def _compiled_loss_and_grad() -> LossAndGrad:
    compiled: LossAndGrad = torch.compile(_loss_and_grad_functional, dynamic=False)
    return compiled
