"""The cross-entropy of each token, for losses that are no sum over tokens, such as those of preferences.

Like `cross_entropy.linear_loss`, chunk by chunk and over a slice of the vocabulary as well. There the gradients are
made beside the loss, as each token counts alike; here the factor of each is known only in the backward pass, which
makes the logits again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.kernels.cross_entropy import CHUNK_TOKENS, IGNORE_INDEX, Projection, VocabSlice


def linear_token_losses(
    hidden_ND: Tensor,
    projection: Projection,
    labels_N: Tensor,
    vocab: VocabSlice | None = None,
    *,
    chunk: int = CHUNK_TOKENS,
) -> Tensor:
    """-log softmax(hidden · weightᵀ)[label] of each token, fp32 [N]; 0 where there is no target.

    The arguments are those of `cross_entropy.linear_loss`.
    """
    options = (projection.softcap, projection.classes, labels_N, vocab, chunk)
    losses: Tensor = _TokenLosses.apply(hidden_ND, projection.weight, projection.bias, *options)
    return losses


def linear_token_losses_reference(hidden_ND: Tensor, projection: Projection, labels_N: Tensor) -> Tensor:
    logits_NV = projection.capped(projection.logits(hidden_ND).float())
    return F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="none")


class _TokenLosses(torch.autograd.Function):
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
        chunk: int,
    ) -> Tensor:
        projection = Projection(weight_VD, bias_V, softcap, classes)
        losses_N = torch.empty(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
        logsumexp_N = torch.empty_like(losses_N)
        for at in range(0, hidden_ND.shape[0], chunk):
            here = slice(at, at + chunk)
            logits_nV, local_n, counted_n = _logits(hidden_ND[here], projection, labels_N[here], vocab)
            maximum_n = logits_nV.amax(-1)
            if vocab:
                maximum_n = vocab.reduce(maximum_n, "max")
            target_n = logits_nV.gather(1, local_n.clamp(min=0)[:, None])[:, 0] - maximum_n
            target_n = target_n.where(local_n >= 0, torch.zeros_like(target_n))
            sum_n = (logits_nV - maximum_n[:, None]).exp_().sum(-1)
            if vocab:
                sum_n, target_n = vocab.reduce(torch.stack((sum_n, target_n)), "sum").unbind()
            losses_N[here] = (sum_n.log() - target_n) * counted_n
            logsumexp_N[here] = sum_n.log() + maximum_n
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, logsumexp_N)
        ctx.options = softcap, classes, vocab, chunk
        return losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, labels_N, logsumexp_N = ctx.saved_tensors
        softcap, classes, vocab, chunk = ctx.options
        projection = Projection(weight_VD, bias_V, softcap, classes)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias = weight_VD.new_zeros(weight_VD.shape[0], dtype=torch.float32) if needs_bias else None
        for at in range(0, hidden_ND.shape[0], chunk):
            here = slice(at, at + chunk)
            hidden = hidden_ND[here]
            logits_nV, local_n, counted_n = _logits(hidden, projection, labels_N[here], vocab)
            factor_n = grads[0][here] * counted_n
            slope_nV = None if softcap is None else 1.0 - (logits_nV / softcap).square()
            grad_nV = (logits_nV - logsumexp_N[here][:, None]).exp_().mul_(factor_n[:, None])
            at_label_n = -factor_n * (local_n >= 0)
            grad_nV.scatter_add_(1, local_n.clamp(min=0)[:, None], at_label_n[:, None])
            if slope_nV is not None:
                grad_nV.mul_(slope_nV.nan_to_num_(neginf=0.0))
            grad_logits = grad_nV.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[here] = grad_logits @ weight_VD
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
        dtype = weight_VD.dtype
        weights = (None if grad is None else grad.to(dtype) for grad in (grad_weight, grad_bias))
        return grad_hidden, *weights, *[None] * 5


def _logits(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk: fp32 logits [n, V] of the rows that are here; the label's row here, or -1; whether there is one."""
    logits_nV = projection.capped(projection.logits(hidden_nD).float())
    real_V = projection.counted(vocab)
    if real_V is not None:
        logits_nV = logits_nV.masked_fill(~real_V, -torch.inf)
    counted_n = labels_n != IGNORE_INDEX
    local_n = labels_n - (vocab.start if vocab else 0)
    here_n = counted_n & (local_n >= 0) & (local_n < logits_nV.shape[1])
    return logits_nV, local_n.where(here_n, torch.full_like(local_n, -1)), counted_n
