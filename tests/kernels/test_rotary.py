import math

import pytest
import torch

from megatrain.kernels.rotary import apply_rotary, apply_rotary_reference, rotary_table
from megatrain.model.rope import Llama3Scaling

TOLERANCE = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "size"), [(1, 2), (3, 10), (2, 64)])
def test_values_and_gradients_of_complex_multiplication(heads, size, dtype) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 2, 7, heads, size).to(dtype)
    table = rotary_table(torch.randint(0, 5000, (2, 7)), size, 10000.0)
    outcomes = []
    for op in (apply_rotary, apply_rotary_reference):
        given = x.clone().requires_grad_()
        out = op(given, *table)
        assert out.dtype == dtype
        outcomes.append((out, *torch.autograd.grad(out, given, upstream)))
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE[dtype])


def test_angles_are_exact_at_position_100000() -> None:
    """The fastest pair turns by one radian a position: there, an angle rounded to bf16 would be off by up to 256."""
    position = 100_000
    cos, sin = rotary_table(torch.tensor([[position]]), 8, 10000.0)
    assert cos.shape == sin.shape == (1, 1, 1, 4)
    assert cos.dtype == sin.dtype == torch.float32
    for pair in range(4):
        angle = position * 10000.0 ** (-2 * pair / 8)
        # fp32 holds the angle to 2^-24 of itself, and so do the frequency and the product
        assert cos[0, 0, 0, pair].item() == pytest.approx(math.cos(angle), abs=3 * angle * 2**-24 + 1e-6)
        assert sin[0, 0, 0, pair].item() == pytest.approx(math.sin(angle), abs=3 * angle * 2**-24 + 1e-6)


def test_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(query_at: int, key_at: int) -> float:
        turned = [
            apply_rotary(x, *rotary_table(torch.tensor([[at]]), 16, 100.0)) for x, at in ((q, query_at), (k, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(505, 500), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 0.1


def test_lengths_are_kept_and_position_zero_is_the_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 2, 12)
    turned = apply_rotary(x, *rotary_table(torch.arange(6)[None], 12, 10000.0))
    assert torch.equal(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_pairs_lie_half_a_head_apart() -> None:
    """As in Llama's published weights: channel i turns with channel i + K/2."""
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0] = 1.0
    turned = apply_rotary(x, *rotary_table(torch.tensor([[1]]), 4, 10000.0))
    torch.testing.assert_close(turned.flatten(), torch.tensor([math.cos(1), 0.0, math.sin(1), 0.0]))


def test_scaling_slows_the_slow_channels_and_spares_the_fast_ones():
    """Llama 3.1: between one and four turns in the original length it changes by degrees."""
    scaling = Llama3Scaling(factor=8.0, original_max_position_embeddings=64)
    one = torch.ones(1, 1, dtype=torch.int64)
    plain, slowed = (torch.asin(rotary_table(one, 16, 100.0, s)[1]).flatten() for s in (None, scaling))
    turns = 64 * plain / (2 * math.pi)
    assert torch.equal(slowed[turns > 4], plain[turns > 4])
    torch.testing.assert_close(slowed[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((slowed < plain) & (slowed > plain / 8))[between].all()
