"""The vocabulary projection and its cross-entropy as one op that never holds all logits.

A vocabulary of 128k makes the logits of 8k tokens 4 GiB in fp32, and their gradient as much again. The op walks over
chunks of tokens; for each it makes the logits, the loss and, at once, the gradients, and keeps only the gradients of
its two inputs (the idea of Liger Kernel, arXiv 2410.10989, section 3.2). It works on a slice of the vocabulary as well:
the slices agree on each token's maximum and sum through two small reductions.

With t the label, ε the smoothing, z the factor of the z-loss, and V the size of the whole vocabulary, a token's loss is

    logsumexp − (1−ε)·logit[t] − ε·mean(logits) + z·logsumexp²

of logits = hidden · weightᵀ + bias, with a soft cap c: c·tanh(logits / c), where the gradient has a factor of
1 − (logit / c)² (Gemma 2, arXiv 2408.00118, section 2).

Classes are a small vocabulary, padded with rows that stand for none: their logits are −∞, and V counts the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
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
    size: int  # of the whole vocabulary


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What is minimised besides the cross-entropy.

    Attributes:
        z_loss: factor of logsumexp(logits)², which keeps logits from drifting (PaLM, arXiv 2204.02311, section 5).
        label_smoothing: part of the target that is spread evenly over the vocabulary, that of the label included.
        by_token: the cross-entropy of each token is wanted instead, with no term; see kernels/token_losses.py.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    by_token: bool = False

    def __bool__(self) -> bool:
        return bool(self.z_loss or self.label_smoothing)

    @property
    def loss_and_grad(self) -> "LossAndGrad | None":
        """Of a loss of another form; see kernels/class_loss.py."""
        return None

    def to(self, device: torch.device) -> "LossTerms":
        return self


NO_TERMS = LossTerms()


@dataclass(frozen=True, slots=True)
class Projection:
    """From hidden states to logits.

    Attributes:
        weight: all rows, or this rank's slice of the vocabulary. Its gradient is summed in fp32.
        bias: of the same rows; None: there is none.
        softcap: c of c·tanh(logits / c); None: there is none.
        classes: rows of the whole vocabulary that stand for something, the first ones; None: all.
    """

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None
    classes: int | None = None

    def counted(self, vocab: "VocabSlice | None") -> Tensor | None:
        """bool [V]: whether a row stands for something; None: all do."""
        if self.classes is None:
            return None
        rows = torch.arange(self.weight.shape[0], device=self.weight.device)
        return rows + (vocab.start if vocab else 0) < self.classes

    def size(self, vocab: "VocabSlice | None") -> int:
        """Rows that stand for something, of the whole vocabulary."""
        return self.classes or (vocab.size if vocab else self.weight.shape[0])

    def logits(self, hidden_nD: Tensor) -> Tensor:
        """[n, V] in the dtype of the hidden states, not yet capped."""
        return F.linear(hidden_nD, self.weight, self.bias)

    def capped(self, logits_nV: Tensor) -> Tensor:
        return logits_nV if self.softcap is None else self.softcap * torch.tanh(logits_nV / self.softcap)


LossAndGrad = Callable[[Tensor, Projection, Tensor, VocabSlice | None, LossTerms], tuple[Tensor, Tensor]]


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
    return linear_loss(hidden_ND, Projection(weight_VD), labels_N, NO_TERMS, vocab, chunk=chunk, compiled=compiled)[0]


def linear_loss(
    hidden_ND: Tensor,
    projection: Projection,
    labels_N: Tensor,
    terms: LossTerms,
    vocab: VocabSlice | None = None,
    *,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sums over tokens of the loss with its terms, and of the cross-entropy alone, which has no gradient; fp32 scalars.

    The other arguments are those of `linear_cross_entropy`.
    """
    wanted = torch.is_grad_enabled()  # inside a Function's forward it is always off
    chunk = chunk or (COMPILED_CHUNK_TOKENS if compiled else CHUNK_TOKENS)
    part = terms.loss_and_grad or _chunk_loss(hidden_ND.is_cuda, compiled)
    options = (projection.softcap, projection.classes, labels_N, vocab, terms, chunk, part, wanted)
    losses: tuple[Tensor, Tensor] = _LinearLoss.apply(hidden_ND, projection.weight, projection.bias, *options)
    return losses


def linear_cross_entropy_reference(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, terms: LossTerms = NO_TERMS
) -> Tensor:
    return linear_loss_reference(hidden_ND, Projection(weight_VD), labels_N, terms)


def linear_loss_reference(
    hidden_ND: Tensor, projection: Projection, labels_N: Tensor, terms: LossTerms = NO_TERMS
) -> Tensor:
    logits_NV = projection.capped(projection.logits(hidden_ND).float())
    loss = F.cross_entropy(
        logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=terms.label_smoothing
    )
    squares_N = logits_NV.logsumexp(-1).square() * (labels_N != IGNORE_INDEX)
    return loss + terms.z_loss * squares_N.sum()


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        classes: int | None,
        labels_N: Tensor,
        vocab: VocabSlice | None,
        terms: LossTerms,
        chunk: int,
        loss_and_grad: LossAndGrad,
        gradients_wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        losses = torch.zeros(2, dtype=torch.float32, device=hidden_ND.device)
        projection = Projection(weight_VD, bias_V, softcap, classes)
        needs_hidden, needs_weight, needs_bias = (gradients_wanted and needed for needed in ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias = weight_VD.new_zeros(weight_VD.shape[0], dtype=torch.float32) if needs_bias else None
        for at in range(0, hidden_ND.shape[0], chunk):
            hidden, labels = hidden_ND[at : at + chunk], labels_N[at : at + chunk]
            part, grad_logits = loss_and_grad(hidden, projection, labels, vocab, terms)
            losses += part
            if grad_hidden is not None:
                grad_hidden[at : at + chunk] = grad_logits @ weight_VD
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
            del grad_logits  # or it would stand beside the next chunk's logits
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight_VD.dtype
        loss, cross_entropy = losses.unbind()
        ctx.mark_non_differentiable(cross_entropy)
        return loss, cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        grad_hidden, *grad_parameters = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        scaled = (  # in place: a copy of the weight's is 4 GiB at 128k × 8k
            None if grad is None else grad.mul_(scale).to(ctx.weight_dtype) for grad in grad_parameters
        )
        return grad_hidden, *scaled, *[None] * 8


def _loss_and_grad(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """Of one chunk: [loss, cross-entropy], and d loss / d logits [n, V] in the dtype of `hidden_nD`."""
    logits_nV = projection.capped(projection.logits(hidden_nD).float())
    slope_nV = None if projection.softcap is None else 1.0 - (logits_nV / projection.softcap).square()
    real_V = projection.counted(vocab)
    if real_V is not None:
        logits_nV.masked_fill_(~real_V, -torch.inf)
    counted_n = labels_n != IGNORE_INDEX
    local_n = labels_n - (vocab.start if vocab else 0)
    here_n = counted_n & (local_n >= 0) & (local_n < logits_nV.shape[1])
    local_n = local_n.where(here_n, torch.zeros_like(local_n))

    maximum_n = logits_nV.amax(-1)
    if vocab:
        maximum_n = vocab.reduce(maximum_n, "max")
    logits_nV -= maximum_n[:, None]
    target_n = logits_nV.gather(1, local_n[:, None])[:, 0].where(here_n, torch.zeros_like(maximum_n))
    logit_sum_n = _sum(logits_nV, real_V) if terms.label_smoothing else None
    exp_nV = logits_nV.exp_()
    sum_n, target_n, logit_sum_n = over_slices(exp_nV.sum(-1), target_n, logit_sum_n, vocab)
    losses, softmax_factor_n, everywhere = token_losses(
        sum_n, target_n, logit_sum_n, maximum_n, counted_n, terms, projection.size(vocab)
    )

    grad_nV = exp_nV.mul_((softmax_factor_n / sum_n)[:, None])
    grad_nV.scatter_add_(1, local_n[:, None], -here_n.to(grad_nV.dtype)[:, None] * (1.0 - terms.label_smoothing))
    if everywhere:
        grad_nV.sub_(everywhere * (counted_n[:, None] if real_V is None else counted_n[:, None] & real_V))
    if slope_nV is not None:
        grad_nV.mul_(slope_nV)
    return losses, grad_nV.to(hidden_nD.dtype)


def _loss_and_grad_functional(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """The same bits as `_loss_and_grad`, as expressions that a compiler fuses: fp32 values stay in registers."""
    logits_nV = projection.logits(hidden_nD)
    if projection.softcap is not None:
        logits_nV = projection.capped(logits_nV.float())
    real_V = projection.counted(vocab)
    if real_V is not None:
        logits_nV = torch.where(real_V, logits_nV, -torch.inf)
    counted_n = labels_n != IGNORE_INDEX
    local_n = labels_n - (vocab.start if vocab else 0)
    target_nV = (torch.arange(logits_nV.shape[1], device=local_n.device) == local_n[:, None]) & counted_n[:, None]

    maximum_n = logits_nV.amax(-1).float()
    if vocab:
        maximum_n = vocab.reduce(maximum_n, "max")
    shifted_nV = logits_nV.float() - maximum_n[:, None]
    target_n = torch.where(target_nV, shifted_nV, 0.0).sum(-1)
    logit_sum_n = _sum(shifted_nV, real_V) if terms.label_smoothing else None
    sum_n, target_n, logit_sum_n = over_slices(shifted_nV.exp().sum(-1), target_n, logit_sum_n, vocab)
    losses, softmax_factor_n, everywhere = token_losses(
        sum_n, target_n, logit_sum_n, maximum_n, counted_n, terms, projection.size(vocab)
    )

    grad_nV = shifted_nV.exp() * (softmax_factor_n / sum_n)[:, None] - target_nV.float() * (1.0 - terms.label_smoothing)
    if everywhere:
        grad_nV = grad_nV - everywhere * (counted_n[:, None] if real_V is None else counted_n[:, None] & real_V)
    if projection.softcap is not None:
        grad_nV = grad_nV * (1.0 - (logits_nV / projection.softcap).square())
    return losses, grad_nV.to(hidden_nD.dtype)


def over_slices(
    sum_n: Tensor, target_n: Tensor, logit_sum_n: Tensor | None, vocab: VocabSlice | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the whole vocabulary, in one reduction."""
    if vocab is None:
        return sum_n, target_n, logit_sum_n
    parts = vocab.reduce(
        torch.stack((sum_n, target_n) if logit_sum_n is None else (sum_n, target_n, logit_sum_n)), "sum"
    )
    return parts[0], parts[1], None if logit_sum_n is None else parts[2]


def _sum(logits_nV: Tensor, real_V: Tensor | None) -> Tensor:
    return (logits_nV if real_V is None else torch.where(real_V, logits_nV, 0.0)).sum(-1)


def token_losses(
    sum_n: Tensor,
    target_n: Tensor,
    logit_sum_n: Tensor | None,
    maximum_n: Tensor,
    counted_n: Tensor,
    terms: LossTerms,
    size: int,
) -> tuple[Tensor, Tensor, float]:
    """[loss, cross-entropy]; the factor of softmax in the gradient, per token; what is subtracted from every logit's.

    Logits are those less the maximum: `sum_n` is of their exponentials, `logit_sum_n` of themselves, `target_n` the
    label's.
    """
    log_n = sum_n.log()
    loss_n = cross_entropy_n = log_n - target_n
    softmax_factor_n = counted_n
    if logit_sum_n is not None:
        loss_n = log_n - (1.0 - terms.label_smoothing) * target_n - terms.label_smoothing / size * logit_sum_n
    if terms.z_loss:
        logsumexp_n = log_n + maximum_n
        loss_n = loss_n + terms.z_loss * logsumexp_n.square()
        softmax_factor_n = counted_n * (1.0 + 2.0 * terms.z_loss * logsumexp_n)
    losses = torch.stack(((loss_n * counted_n).sum(), (cross_entropy_n * counted_n).sum()))
    return losses, softmax_factor_n, terms.label_smoothing / size


def _chunk_loss(on_gpu: bool, compiled: bool) -> LossAndGrad:
    """Triton's kernels on a GPU, else torch's operators, compiled where that is asked for."""
    if on_gpu and find_spec("triton"):
        from megatrain.kernels.fused_cross_entropy import loss_and_grad as fused

        return fused
    return _compiled_loss_and_grad() if compiled else _loss_and_grad


@lru_cache(maxsize=1)
def _compiled_loss_and_grad() -> LossAndGrad:
    compiled: LossAndGrad = torch.compile(_loss_and_grad_functional, dynamic=False)
    return compiled
