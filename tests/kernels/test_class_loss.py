"""Losses of a class head are torch's own, whole and over slices of the classes, with their gradients."""

import pytest
import torch
import torch.nn.functional as F

from megatrain.kernels.class_loss import ClassWeights, TargetLoss
from megatrain.kernels.cross_entropy import IGNORE_INDEX, LossTerms, Projection, VocabSlice, linear_loss
from tests.kernels.test_cross_entropy import Ranks

CLASSES, PADDED, WIDTH, POSITIONS, EXAMPLES = 5, 12, 6, 40, 9
WEIGHTS = torch.tensor([0.5, 3.0, 1.0, 0.0, 2.0])


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=chance)
    weight, bias = torch.randn(PADDED, WIDTH, generator=chance), torch.randn(PADDED, generator=chance)
    labels = torch.full((POSITIONS,), IGNORE_INDEX)
    places = torch.randperm(POSITIONS, generator=chance)[:EXAMPLES].sort().values
    labels[places] = torch.arange(EXAMPLES)
    return hidden, weight, bias, labels


def gradients(loss, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors))


def losses(terms: LossTerms, labels: torch.Tensor, slices: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and the gradients of hidden states, weight and bias, from ranks that hold a slice each."""
    hidden, weight, bias, _ = inputs()
    ranks = Ranks(slices)

    def one(rank: int):
        own = hidden.clone().requires_grad_()
        part, shift = (x.chunk(slices)[rank].clone().requires_grad_() for x in (weight, bias))
        vocab = VocabSlice(rank * PADDED // slices, lambda x, op: ranks.reduce(rank, x, op), PADDED)
        projection = Projection(part, shift, classes=CLASSES)
        loss, _ = linear_loss(own, projection, labels, terms, vocab if slices > 1 else None, chunk=16)
        return loss.detach(), gradients(loss, own, part, shift)

    found = ranks.run(one)
    shares = [grads for _, grads in found]
    assert all(torch.equal(loss, found[0][0]) for loss, _ in found), "every rank has the same loss"
    whole = [sum(share[0] for share in shares), *(torch.cat([share[n] for share in shares]) for n in (1, 2))]
    assert not any(gradient[CLASSES:].any() for gradient in whole[1:])
    return found[0][0], [whole[0], *(gradient[:CLASSES] for gradient in whole[1:])]


def expected(loss_of) -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden, weight, bias, labels = inputs()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight[:CLASSES], bias[:CLASSES])]
    loss = loss_of(F.linear(*leaves)[labels != IGNORE_INDEX])
    return loss.detach(), gradients(loss, *leaves)


def check(got, wanted) -> None:
    torch.testing.assert_close(got[0], wanted[0])
    for one, other in zip(got[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy(slices, smoothing) -> None:
    *_, labels = inputs()
    classes = torch.arange(EXAMPLES) % CLASSES
    given = labels.clone()
    given[labels != IGNORE_INDEX] = classes

    def loss(logits: torch.Tensor) -> torch.Tensor:
        mean = F.cross_entropy(logits, classes, weight=WEIGHTS, label_smoothing=smoothing)
        return mean * WEIGHTS[classes].sum()  # what torch divides by, and here the loop

    check(losses(ClassWeights(label_smoothing=smoothing, weights=WEIGHTS), given, slices), expected(loss))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize(
    ("kind", "function"), [("binary", F.binary_cross_entropy_with_logits), ("squared", F.mse_loss)]
)
def test_losses_of_each_logit(slices, kind, function) -> None:
    *_, labels = inputs()
    targets = torch.randn(EXAMPLES, CLASSES, generator=torch.Generator().manual_seed(1))
    targets = (targets > 0).float() if kind == "binary" else targets
    wanted = expected(lambda logits: function(logits, targets) * EXAMPLES)
    check(losses(TargetLoss(kind=kind, targets=targets), labels, slices), wanted)
