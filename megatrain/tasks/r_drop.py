"""R-Drop (arXiv 2106.14448): each example goes through the model twice, under two masks of dropout, and the two
predictions are drawn together. N positions, C labels.

    loss    1/2 · (CE(p) + CE(q)) + α · 1/2 · (KL(p‖q) + KL(q‖p)), of each example, in the sum over them

Both copies are one batch, of twice the rows: perturbation/noise.py gives the second half keys of its own.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.kernels.class_loss import ClassWeights
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks.base import LossSums

METRICS.register(
    "divergence",
    Metric(
        unit="nats per target: half the sum of both KL divergences of R-Drop's two predictions",
        tag="train/divergence",
        format="{:.4f}".format,
        console="divergence {value}",
        over_steps="mean",
        over_ranks="sum",
    ),
)


def twice(batch: Batch) -> Batch:
    """The rows of a batch, and behind them the same rows as others."""

    def both(rows: Tensor) -> Tensor:
        return torch.cat((rows, rows))

    def both_or_none(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else both(rows)

    bounds = batch.cu_seqlens
    return replace(
        batch,
        input_ids=both(batch.input_ids),
        labels=both(batch.labels),
        position_ids=both(batch.position_ids),
        cu_seqlens=None if bounds is None else torch.cat((bounds, bounds[1:] + bounds[-1])),
        token_types=both_or_none(batch.token_types),
        whole_labels=both_or_none(batch.whole_labels),
    )


def r_drop_loss(logits_BSC: Tensor, labels_BS: Tensor, alpha: float, terms: LossTerms) -> LossSums:
    """Sums over the positions with a label. Class weights weigh an example's divergence as they do its cross-entropy.

    Args:
        logits_BSC: of a batch that went through the model as `twice` makes it: fp32 [2·B, S, C].
        labels_BS: int64 [B, S].
    """
    labels_N = labels_BS.flatten()
    weights = terms.weights if isinstance(terms, ClassWeights) else None
    counted_N = labels_N != IGNORE_INDEX
    weight_N = counted_N.float()
    if weights is not None:
        weight_N = weight_N * weights[labels_N.where(counted_N, torch.zeros_like(labels_N))]
    p_NC, q_NC = (half.flatten(0, 1).log_softmax(-1) for half in logits_BSC.chunk(2))

    def cross_entropy(log_NC: Tensor, smoothing: float) -> Tensor:
        # log-probabilities are logits of themselves
        return F.cross_entropy(log_NC, labels_N, weights, reduction="sum", label_smoothing=smoothing)

    entropies = 0.5 * (cross_entropy(p_NC, terms.label_smoothing) + cross_entropy(q_NC, terms.label_smoothing))
    # KL(p‖q) + KL(q‖p) = Σ (p − q)·(log p − log q)
    both_N = ((p_NC.exp() - q_NC.exp()) * (p_NC - q_NC)).sum(-1)
    divergence = 0.5 * (both_N * weight_N).sum()
    plain = 0.5 * (cross_entropy(p_NC.detach(), 0.0) + cross_entropy(q_NC.detach(), 0.0))
    return LossSums(entropies + alpha * divergence, {"cross_entropy": plain, "divergence": divergence.detach()})
