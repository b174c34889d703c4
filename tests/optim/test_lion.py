import pytest
import torch
from torch import nn

from megatrain.optim.lion.optimizer import Lion

RATE, DECAY, BETAS = 1e-2, 0.3, (0.9, 0.99)


def weights_after(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight after some steps of Lion, and as algorithm 2 of the paper says, element by element in Python."""
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(3, 5, generator=generator))
    optimizer = Lion([{"params": [weight], "weight_decay": DECAY}], lr=RATE, betas=BETAS)
    expected, momentum = weight.detach().flatten().tolist(), [0.0] * 15
    for _ in range(steps):
        gradient = torch.randn(3, 5, generator=generator)
        weight.grad = gradient
        optimizer.step()
        for at, g in enumerate(gradient.flatten().tolist()):
            mixed = BETAS[0] * momentum[at] + (1 - BETAS[0]) * g
            expected[at] -= RATE * ((mixed > 0) - (mixed < 0) + DECAY * expected[at])
            momentum[at] = BETAS[1] * momentum[at] + (1 - BETAS[1]) * g
    return weight.detach(), torch.tensor(expected).view(3, 5)


def test_updates_are_those_of_the_paper() -> None:
    got, want = weights_after(20)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_held_back_changes_nothing(bad: float) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = Lion([weight], lr=RATE, weight_decay=DECAY)
    weight.grad = torch.full((4,), 0.5)
    optimizer.step()
    before, momentum = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    optimizer.found_inf = torch.ones(())
    weight.grad = torch.tensor([bad, 1.0, -1.0, bad])
    optimizer.step()
    assert torch.equal(weight.detach(), before)
    assert torch.equal(optimizer.state[weight]["exp_avg"], momentum)
    optimizer.found_inf = torch.zeros(())
    weight.grad = torch.ones(4)
    optimizer.step()
    assert not torch.equal(weight.detach(), before)


def test_weights_without_a_gradient_stay() -> None:
    weight = nn.Parameter(torch.ones(4))
    Lion([weight], lr=RATE, weight_decay=DECAY).step()
    assert torch.equal(weight.detach(), torch.ones(4))
