"""Kahneman-Tversky optimization (arXiv 2402.01306, equations 7 and 8), of answers that are desirable or not."""

import torch
from torch import Tensor

from megatrain.tasks.preference.section import PreferenceSection


def loss(
    policy_N: Tensor, reference_N: Tensor, desirable_N: Tensor, kl: Tensor, section: PreferenceSection
) -> tuple[Tensor, Tensor]:
    """Of each answer, and its reward β·log(π/π_ref): [N] both.

    Args:
        policy_N, reference_N: log-probabilities of the answers.
        desirable_N: 1, or 0 of the others.
        kl: [], see `divergence`; no gradient passes it.
    """
    rewards_N = section.beta * (policy_N - reference_N)
    point = section.beta * kl
    of_desirable_N = section.desirable_weight * (1 - torch.sigmoid(rewards_N - point))
    of_others_N = section.undesirable_weight * (1 - torch.sigmoid(point - rewards_N))
    return torch.where(desirable_N > 0, of_desirable_N, of_others_N), rewards_N


def divergence(ratios: Tensor, count: Tensor | int) -> Tensor:
    """How far the model has gone from the reference, in nats, never below 0.

    Args:
        ratios: [], sum of log(π/π_ref) over answers to other prompts than their own, `count` of them.
    """
    return (ratios / count).clamp(min=0.0)
