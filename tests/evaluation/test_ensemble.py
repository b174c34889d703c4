"""An ensemble's probabilities are the mean of its members'."""

import pytest
import torch
from torch import nn

from megatrain.evaluation.ensemble import Ensemble


class Says(nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, ids, labels=None, **options):
        return self.logits


@pytest.mark.parametrize(
    ("problem", "probability"),
    [
        ("single_label", lambda logits: logits.softmax(-1)),
        ("multi_label", lambda logits: logits.sigmoid()),
        ("regression", lambda logits: logits),
    ],
)
def test_the_mean(problem, probability) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [4 * torch.randn(2, 5, 3, generator=generator) for _ in range(3)]
    found = Ensemble([Says(one) for one in logits], problem)(torch.zeros(2, 5, dtype=torch.long))
    expected = torch.stack([probability(one) for one in logits]).mean(0)
    torch.testing.assert_close(probability(found), expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


def test_members_that_are_sure(tmp_path) -> None:
    sure = torch.tensor([[[200.0, -200.0]]])
    for problem in ("single_label", "multi_label"):
        assert torch.isfinite(Ensemble([Says(sure), Says(sure)], problem)(torch.zeros(1, 1))).all()
