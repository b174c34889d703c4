import pytest
import torch

from megatrain.optim.adamw_l2sp.optimizer import AdamWL2SP


def stepped(gradients: list[torch.Tensor], *, held_back: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights after steps, and where they began."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    begin = weight.detach().clone()
    optimizer = AdamWL2SP([weight], lr=0.1, weight_decay=0.5, fused=True)
    optimizer.found_inf = torch.tensor(float(held_back))
    optimizer.state[weight] = {}
    weight.grad = torch.zeros_like(weight)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.state[weight]["start"].copy_(weight.detach())
    optimizer.state[weight]["step"].zero_()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
    return weight.detach(), begin


def test_it_is_adamw_with_the_start_for_zero() -> None:
    torch.manual_seed(1)
    gradients = [torch.randn(3, 4) for _ in range(5)]
    found, begin = stepped(gradients)
    # AdamW without decay, and the decay by hand
    weight = torch.nn.Parameter(begin.clone())
    plain = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
    for gradient in gradients:
        with torch.no_grad():
            weight.sub_(0.1 * 0.5 * (weight - begin))
        weight.grad = gradient
        plain.step()
    assert torch.allclose(found, weight.detach(), atol=1e-6)


def test_without_gradients_it_stays_where_it_began() -> None:
    found, begin = stepped([torch.zeros(3, 4)] * 3)
    assert torch.allclose(found, begin, atol=1e-6)


@pytest.mark.parametrize("gradient", [float("nan"), float("inf")])
def test_a_step_that_is_held_back_changes_nothing(gradient) -> None:
    found, begin = stepped([torch.full((3, 4), gradient)], held_back=True)
    assert torch.equal(found, begin)
