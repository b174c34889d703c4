"""The loss of a model whose logits are more than its head's product: they exist as a whole, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from megatrain.kernels.cross_entropy import IGNORE_INDEX, LossTerms


def loss_of_logits(logits_BSV: Tensor, labels_BS: Tensor, terms: LossTerms | None) -> Tensor | tuple[Tensor, Tensor]:
    """As `model.lm_head.Head.forward`: the summed loss; with terms also the cross-entropy in it, which has no gradient;
    with terms by token the cross-entropy of each, fp32 [B, S]."""
    logits_NV, labels_N = logits_BSV.flatten(0, 1).float(), labels_BS.flatten()
    losses_N = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="none")
    if terms is not None and terms.by_token:
        return losses_N.view(labels_BS.shape)
    loss = cross_entropy = losses_N.sum()
    if terms is None:
        return loss
    if terms.label_smoothing:
        loss = F.cross_entropy(
            logits_NV, labels_N, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=terms.label_smoothing
        )
    if terms.z_loss:
        loss = loss + terms.z_loss * (logits_NV.logsumexp(-1).square() * (labels_N != IGNORE_INDEX)).sum()
    return loss, cross_entropy.detach()
