"""Odds ratio preference optimization (arXiv 2403.07691, equations 4 to 7): no reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.tasks.preference.section import PreferenceSection


def loss(
    policy_P2: Tensor, reference_P2: Tensor, tokens_P2: Tensor, section: PreferenceSection
) -> tuple[Tensor, Tensor]:
    """As `dpo.loss`: the mean cross-entropy of the chosen answer, less β·log σ(log odds ratio)."""
    mean_P2 = policy_P2 / tokens_P2
    log_odds_P2 = mean_P2 - torch.log(-torch.expm1(mean_P2))
    ratio_P = F.logsigmoid(log_odds_P2[:, 0] - log_odds_P2[:, 1])
    return -mean_P2[:, 0] - section.beta * ratio_P, section.beta * mean_P2
