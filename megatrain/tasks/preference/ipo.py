"""Identity preference optimization (arXiv 2310.12036, equation 17), on the mean over an answer's tokens, as its authors
have it in TRL."""

from torch import Tensor

from megatrain.tasks.preference.section import PreferenceSection


def loss(
    policy_P2: Tensor, reference_P2: Tensor, tokens_P2: Tensor, section: PreferenceSection
) -> tuple[Tensor, Tensor]:
    """As `dpo.loss`; rewards are of the mean token."""
    ratios_P2 = (policy_P2 - reference_P2) / tokens_P2
    return (ratios_P2[:, 0] - ratios_P2[:, 1] - 1 / (2 * section.beta)).square(), section.beta * ratios_P2
