"""Losses of a class head that are not a plain cross-entropy: weighted by class, of several labels, of numbers.

Each is a `LossAndGrad` of kernels/cross_entropy.py, of logits z = hidden · weightᵀ + bias of C classes, and works on a
slice of them as well. Of an example with label y, weights w, smoothing ε and targets t:

    weighted      (1−ε)·w[y]·(L − z[y]) + ε/C · Σ w[c]·(L − z[c]),  L = logsumexp(z): torch's CrossEntropyLoss, which
                  is divided by Σ w[y] over the batch
    binary        1/C · Σ max(z[c], 0) − z[c]·t[c] + log(1 + exp(−|z[c]|)): torch's BCEWithLogitsLoss
    squared       1/C · Σ (z[c] − t[c])²: torch's MSELoss
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.kernels.cross_entropy import IGNORE_INDEX, LossAndGrad, LossTerms, Projection, VocabSlice


@dataclass(frozen=True, slots=True, eq=False)
class ClassWeights(LossTerms):
    """Cross-entropy in which an example counts as the weight of its label says.

    Attributes:
        weights: fp32 [C], of each label.
    """

    weights: Tensor = field(kw_only=True)

    def __bool__(self) -> bool:
        return True

    @property
    def loss_and_grad(self) -> LossAndGrad:
        return _weighted

    def to(self, device: torch.device) -> "ClassWeights":
        moved = self.weights.to(device)
        return self if moved is self.weights else replace(self, weights=moved)


@dataclass(frozen=True, slots=True, eq=False)
class TargetLoss(LossTerms):
    """A loss of each logit on its own. Labels say which example's targets hold at a position.

    Attributes:
        kind: "binary" or "squared".
        targets: fp32 [E, C], of each example of the batch.
    """

    kind: Literal["binary", "squared"] = field(kw_only=True)
    targets: Tensor = field(kw_only=True)

    def __bool__(self) -> bool:
        return True

    @property
    def loss_and_grad(self) -> LossAndGrad:
        return _of_targets


def _weighted(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """See `_loss_and_grad`."""
    assert isinstance(terms, ClassWeights)
    logits_nV, real_V, start = _logits(hidden_nD, projection, vocab)
    weights_V = _slice(terms.weights, start, logits_nV.shape[1])
    size, smoothing = projection.size(vocab), terms.label_smoothing
    counted_n = labels_n != IGNORE_INDEX
    places_n = labels_n.where(counted_n, torch.zeros_like(labels_n))
    weight_n = terms.weights[places_n] * counted_n
    hit_nV = (torch.arange(start, start + logits_nV.shape[1], device=labels_n.device) == labels_n[:, None]).float()

    masked_nV = logits_nV.masked_fill(~real_V, -torch.inf)
    maximum_n = _reduced(masked_nV.amax(-1), vocab, "max")
    shifted_nV = masked_nV - maximum_n[:, None]
    exp_nV = shifted_nV.exp()
    finite_nV = shifted_nV.masked_fill(~real_V, 0.0)
    parts = torch.stack((exp_nV.sum(-1), (finite_nV * hit_nV).sum(-1), (finite_nV * weights_V).sum(-1)))
    sum_n, target_n, weighted_n = _reduced(parts, vocab, "sum")

    log_n, total = sum_n.log(), terms.weights.sum()
    cross_entropy_n = weight_n * (log_n - target_n)
    spread_n = smoothing / size * (total * log_n - weighted_n) * counted_n
    losses = torch.stack((((1.0 - smoothing) * cross_entropy_n + spread_n).sum(), cross_entropy_n.sum()))
    mass_n = (1.0 - smoothing) * weight_n + smoothing / size * total * counted_n
    grad_nV = exp_nV * (mass_n / sum_n)[:, None] - (1.0 - smoothing) * weight_n[:, None] * hit_nV
    grad_nV = grad_nV - smoothing / size * weights_V * counted_n[:, None]
    return losses, grad_nV.to(hidden_nD.dtype)


def _of_targets(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """See `_loss_and_grad`."""
    assert isinstance(terms, TargetLoss)
    logits_nV, real_V, start = _logits(hidden_nD, projection, vocab)
    counted_n = labels_n != IGNORE_INDEX
    examples_n = labels_n.where(counted_n, torch.zeros_like(labels_n))
    targets_nV = _slice(terms.targets, start, logits_nV.shape[1])[examples_n]
    share_nV = (counted_n[:, None] & real_V) / projection.size(vocab)
    if terms.kind == "binary":
        loss_nV = F.binary_cross_entropy_with_logits(logits_nV, targets_nV, reduction="none")
        grad_nV = logits_nV.sigmoid() - targets_nV
    else:
        difference_nV = logits_nV - targets_nV
        loss_nV, grad_nV = difference_nV.square(), 2.0 * difference_nV
    loss = _reduced((loss_nV * share_nV).sum(), vocab, "sum")
    return torch.stack((loss, loss)), (grad_nV * share_nV).to(hidden_nD.dtype)


def _logits(hidden_nD: Tensor, projection: Projection, vocab: VocabSlice | None) -> tuple[Tensor, Tensor, int]:
    """Fp32 logits [n, V] of the slice, which of its rows stand for a class, and the number of its first row."""
    logits_nV = projection.capped(projection.logits(hidden_nD).float())
    real_V = projection.counted(vocab)
    if real_V is None:
        real_V = torch.ones(logits_nV.shape[1], dtype=torch.bool, device=logits_nV.device)
    return logits_nV, real_V, vocab.start if vocab else 0


def _slice(whole: Tensor, start: int, rows: int) -> Tensor:
    """The columns of a slice of the classes; zeros where its rows stand for none."""
    part = whole[..., start : start + rows]
    return F.pad(part, (0, rows - part.shape[-1]))


def _reduced(x: Tensor, vocab: VocabSlice | None, op: str) -> Tensor:
    return x if vocab is None else vocab.reduce(x, op)
