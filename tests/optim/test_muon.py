"""Muon in one process: against torch's own, and AdamW for what is not a hidden matrix."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatrain.optim.muon.newton_schulz import orthogonalize
from megatrain.optim.muon.optimizer import Muon

RATE, DECAY, STEPS = 2e-2, 0.3, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def torch_muon_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's iterates in bf16 only, which it casts to by this method; what it gets it overwrites."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32), (1, 16)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    u, _, vt = torch.linalg.svd(random(*shape), full_matrices=False)
    given = torch.logspace(-2, 0, min(shape))
    found = orthogonalize(u * given @ vt, 5)
    values = (u.mT @ found @ vt.mT).diagonal()
    assert 0.65 < values.min() <= values.max() < 1.25
    torch.testing.assert_close(u * values @ vt, found, rtol=0, atol=1e-4)


def test_it_is_the_polynomial_step_by_step() -> None:
    given = random(7, 5)
    x = given / given.norm()
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    torch.testing.assert_close(orthogonalize(given, 3), x, rtol=1e-4, atol=1e-5)


def test_zeros_stay_zeros_and_bf16_stays_bf16() -> None:
    assert not orthogonalize(torch.zeros(4, 6), 5).any()
    rough, fine = orthogonalize(random(16, 32).bfloat16(), 5), orthogonalize(random(16, 32), 5)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), fine, rtol=0, atol=0.06)


def trained(optimizers: list[torch.optim.Optimizer], weights: list[nn.Parameter]) -> list[Tensor]:
    for step in range(STEPS):
        for number, weight in enumerate(weights):
            weight.grad = random(*weight.shape, seed=100 * step + number) * 0.1
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * (step + 1) / STEPS
            optimizer.step()
    return [weight.detach() for weight in weights]


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(random(*shape, seed=9)) for shape in ((6, 10), (10, 6), (8, 8), (12, 4), (10,))]


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch(nesterov: bool, torch_muon_in_fp32: None) -> None:
    ours, theirs = weights(), weights()
    groups = [
        {"params": ours[:3], "weight_decay": DECAY, "hidden_matrix": True},
        {"params": ours[3:], "weight_decay": DECAY, "hidden_matrix": False},
    ]
    options = {"momentum": 0.9, "nesterov": nesterov, "ns_steps": 4}
    got = trained([Muon(groups, betas=(0.8, 0.9), eps=1e-6, **options)], ours)
    muon = torch.optim.Muon(theirs[:3], weight_decay=DECAY, adjust_lr_fn="match_rms_adamw", **options)
    adamw = torch.optim.AdamW(theirs[3:], weight_decay=DECAY, betas=(0.8, 0.9), eps=1e-6)
    for mine, want in zip(got, trained([muon, adamw], theirs), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=2e-6)


def test_a_step_at_a_rate_of_zero_makes_the_state_only() -> None:
    matrix, vector = nn.Parameter(random(4, 6)), nn.Parameter(random(4))
    optimizer = Muon(
        [{"params": [matrix], "hidden_matrix": True}, {"params": [vector], "hidden_matrix": False}], lr=0.0
    )
    before = matrix.detach().clone(), vector.detach().clone()
    matrix.grad, vector.grad = torch.zeros_like(matrix), torch.zeros_like(vector)
    optimizer.step()
    assert torch.equal(matrix, before[0])
    assert torch.equal(vector, before[1])
    assert set(optimizer.state[matrix]) == {"momentum_buffer"}
    assert set(optimizer.state[vector]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_held_back_changes_nothing(bad: float) -> None:
    weight = nn.Parameter(random(4, 6))
    optimizer = Muon([{"params": [weight], "hidden_matrix": True, "weight_decay": DECAY}], lr=RATE)
    weight.grad = random(4, 6, seed=1)
    optimizer.step()
    before, momentum = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    optimizer.found_inf = torch.ones(())
    weight.grad = torch.full((4, 6), bad)
    optimizer.step()
    assert torch.equal(weight.detach(), before)
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    optimizer.found_inf = torch.zeros(())
    weight.grad = random(4, 6, seed=2)
    optimizer.step()
    assert not torch.equal(weight.detach(), before)


class Ops(TorchDispatchMode):
    """Which there were."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_no_number() -> None:
    matrix, vector = nn.Parameter(random(4, 6)), nn.Parameter(random(4))
    groups = [{"params": [matrix], "hidden_matrix": True}, {"params": [vector], "hidden_matrix": False}]
    optimizer = Muon(groups, lr=RATE, weight_decay=DECAY)
    optimizer.found_inf = torch.zeros(())
    with Ops() as ops:
        for _ in range(2):
            matrix.grad, vector.grad = random(4, 6, seed=1), random(4, seed=2)
            optimizer.step()
    assert torch.ops.aten.addmm.default in ops.seen
    assert ops.seen.isdisjoint((torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default))


def test_weights_without_a_gradient_stay() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    Muon([{"params": [weight], "hidden_matrix": True, "weight_decay": DECAY}], lr=RATE).step()
    assert torch.equal(weight.detach(), torch.ones(4, 4))
