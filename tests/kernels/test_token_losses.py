"""The cross-entropy of each token equals the plain one, values and gradients, over slices as well."""

import pytest
import torch

from megatrain.kernels.cross_entropy import Projection, VocabSlice
from megatrain.kernels.token_losses import linear_token_losses, linear_token_losses_reference

N, D, V = 23, 12, 20


def given():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(N, D), torch.randn(V, D), torch.randn(V)
    labels = torch.randint(V, (N,))
    labels[::5] = -100
    factors = torch.randn(N)
    return [one.float().requires_grad_() for one in (hidden, weight, bias)], labels, factors


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_values_and_gradients(softcap, chunk) -> None:
    parameters, labels, factors = given()
    hidden, weight, bias = parameters
    projection = Projection(weight, bias, softcap)
    expected = linear_token_losses_reference(hidden, projection, labels)
    found = linear_token_losses(hidden, projection, labels, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found[labels == -100] == 0).all()
    wanted = torch.autograd.grad((expected * factors).sum(), parameters)
    for one, other in zip(torch.autograd.grad((found * factors).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_slices_agree_with_the_whole() -> None:
    """Two slices in one process: what they reduce is made by hand."""
    (hidden, weight, _), labels, factors = given()
    expected = linear_token_losses_reference(hidden, Projection(weight), labels)
    gradients = torch.autograd.grad((expected * factors).sum(), (hidden, weight))
    logits = (hidden @ weight.T).detach()
    half = V // 2

    def reduce_of(start):
        """Of the other slice, what this one cannot know."""
        other = logits[:, half:] if start == 0 else logits[:, :half]
        here = labels - (half if start == 0 else 0)
        inside = (labels != -100) & (here >= 0) & (here < half)

        def reduce(x, op):
            if op == "max":
                return torch.maximum(x, other.amax(-1))
            maximum = logits.amax(-1)
            target = (other.gather(1, here.clamp(0, half - 1)[:, None])[:, 0] - maximum) * inside
            return x + torch.stack(((other - maximum[:, None]).exp().sum(-1), target))

        return reduce

    shares = []
    for start in (0, half):
        part = weight[start : start + half].detach().requires_grad_()
        vocab = VocabSlice(start=start, reduce=reduce_of(start), size=V)
        found = linear_token_losses(hidden, Projection(part), labels, vocab)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        grad_hidden, grad_part = torch.autograd.grad((found * factors).sum(), (hidden, part))
        torch.testing.assert_close(grad_part, gradients[1][start : start + half], rtol=1e-5, atol=1e-6)
        shares.append(grad_hidden)
    torch.testing.assert_close(shares[0] + shares[1], gradients[0], rtol=1e-5, atol=1e-6)
