"""Direct preference optimization (arXiv 2305.18290, equation 7), with smoothed labels (conservative DPO)."""

import torch.nn.functional as F
from torch import Tensor

from megatrain.tasks.preference.section import PreferenceSection


def loss(
    policy_P2: Tensor, reference_P2: Tensor, tokens_P2: Tensor, section: PreferenceSection
) -> tuple[Tensor, Tensor]:
    """Of each pair, and the rewards β·log(π/π_ref) of its two answers: fp32 [P] and [P, 2].

    Args:
        policy_P2, reference_P2: log-probabilities of the chosen and the rejected answer.
        tokens_P2: of each answer.
    """
    rewards_P2 = section.beta * (policy_P2 - reference_P2)
    margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    smoothing = section.label_smoothing
    return -(1 - smoothing) * F.logsigmoid(margin_P) - smoothing * F.logsigmoid(-margin_P), rewards_P2
