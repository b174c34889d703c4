"""Perturbations against references that are computed an example at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatrain.config.adversarial import AdversarialSection
from megatrain.perturbation.adversarial import Adversary
from megatrain.perturbation.attach import NoiseAmounts
from tests.perturbation.test_attach import BATCH, loss_of, noisy

EXAMPLES = [(0, slice(0, 5)), (0, slice(5, 16)), (1, slice(0, 16))]  # row and positions in BATCH


def each_scaled(x: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
    scaled = x.clone()
    for row, places in EXAMPLES:
        scaled[row, places] *= factor(x[row, places].norm())
    return scaled


def attacked(
    section: AdversarialSection, family: str = "llama", *, frozen: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """What blocks were given, and the gradient there, of each pass of an attack."""
    model, _ = noisy(family, NoiseAmounts())
    model.embedding.weight.requires_grad_(not frozen)
    adversary = Adversary(section)
    adversary.attach(model)
    given: list[Tensor] = []
    gradients: list[Tensor] = []
    adversary.begin(BATCH)
    for _ in range(section.ascents + 1):
        loss = loss_of(model)
        assert adversary.embedded is not None
        adversary.embedded.register_hook(gradients.append)
        given.append(adversary.embedded.detach())
        adversary.find_gradient(loss)
        adversary.ascend()
    adversary.end()
    clean = loss_of(model).item()
    assert adversary.embedded is None
    plain, _ = noisy(family, NoiseAmounts())
    assert clean == loss_of(plain).item(), "undisturbed outside of training"
    return given, gradients


@pytest.mark.parametrize(("family", "frozen"), [("llama", False), ("bert", False), ("llama", True)])
def test_fgm_goes_along_the_gradient_of_each_example(family, frozen) -> None:
    given, gradients = attacked(AdversarialSection(epsilon=0.7), family, frozen=frozen)
    expected = each_scaled(gradients[0], lambda norm: 0.7 / norm)
    assert torch.allclose(given[1] - given[0], expected, atol=1e-6)


def test_pgd_goes_on_and_stays_within_epsilon() -> None:
    given, gradients = attacked(AdversarialSection(method="pgd", epsilon=0.5, steps=3, step_size=0.3))
    r = torch.zeros_like(gradients[0])
    for number, gradient in enumerate(gradients[:3]):
        r = r + each_scaled(gradient, lambda norm: 0.3 / norm)
        r = each_scaled(r, lambda norm: (0.5 / norm).clamp(max=1.0))
        assert torch.allclose(given[number + 1] - given[0], r, atol=1e-6)
    assert r[0, :5].norm().item() == pytest.approx(0.5)


def test_an_example_without_a_gradient_is_left_as_it_is() -> None:
    model, _ = noisy("llama", NoiseAmounts())
    adversary = Adversary(AdversarialSection(epsilon=0.7))
    adversary.attach(model)
    adversary.begin(BATCH)
    loss = model.embedding(BATCH.input_ids)[1].square().sum()  # the second row only
    adversary.find_gradient(loss)
    adversary.ascend()
    clean = model.embedding.weight[BATCH.input_ids]
    moved = model.embedding(BATCH.input_ids) - clean
    assert (moved[0] == 0).all()
    assert moved[1].norm().item() == pytest.approx(0.7, rel=1e-5)
