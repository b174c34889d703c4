"""Adafactor is that of torch, and that of transformers, where they do the same."""

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as HFAdafactor

from megatrain.optim.adafactor.optimizer import Adafactor
from megatrain.parallel.whole_sums import of_one_process

SHAPES = ((6, 10), (10, 6), (7,), (1, 5))


def weights(seed: int = 3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def adafactor(parameters: list[nn.Parameter], **options: float) -> Adafactor:
    optimizer = Adafactor(parameters, **options)
    optimizer.exchange = of_one_process(parameters)
    return optimizer


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient * (10.0 if step == 6 else 0.1)  # a jump, of which updates are clipped
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("scale_parameter", [False, True])
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_updates_are_those_of_transformers(scale_parameter: bool, clip: float) -> None:
    mine, theirs = weights(), weights()
    options = {"lr": 1e-2, "clip_threshold": clip, "scale_parameter": scale_parameter, "relative_step": False}
    decay = 0.0 if scale_parameter else 0.1  # which transformers scales as well, and torch does not
    got = stepped(adafactor(mine, weight_decay=decay, **options), mine)
    want = stepped(HFAdafactor(theirs, weight_decay=decay, **options), theirs)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_updates_are_those_of_torch() -> None:
    """Which has relative steps and weights' own scales, and no others; its eps is another, and too small to see."""
    mine, theirs = weights(), weights()
    got = stepped(adafactor(mine, lr=0.3, weight_decay=0.1, scale_parameter=True, relative_step=True), mine)
    want = stepped(torch.optim.Adafactor(theirs, lr=0.3, weight_decay=0.1, foreach=False), theirs)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [0, 2])
def test_an_update_that_is_held_back_changes_nothing(bad: float, before: int) -> None:
    parameters = weights()
    optimizer = adafactor(parameters, lr=1e-2, weight_decay=0.3)
    kept = [one.clone() for one in stepped(optimizer, parameters, before)]
    optimizer.found_inf = torch.ones(())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, bad)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(kept, parameters, strict=True))
    assert optimizer.exchange is not None
    for _, rows, columns in optimizer.exchange.named_factors():
        assert rows.isfinite().all()
        assert columns.isfinite().all()
        assert (rows > 0).all() == bool(before)
    optimizer.found_inf = torch.zeros(())
    assert not torch.equal(stepped(optimizer, parameters, 1)[0], kept[0])
