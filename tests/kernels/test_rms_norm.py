import pytest
import torch

from megatrain.kernels.rms_norm import rms_norm, rms_norm_reference

SHAPES = [(7,), (3, 5, 33), (2, 1), (4, 128), (0, 16)]
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_of_the_reference(shape, dtype) -> None:
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(shape)).to(dtype), torch.rand(shape[-1]).to(dtype)
    upstream = torch.randn(shape).to(dtype)
    outcomes = []
    for op in (rms_norm, rms_norm_reference):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = op(*inputs, 1e-5)
        assert out.dtype == dtype
        outcomes.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE[dtype])


def test_the_square_is_taken_in_fp32() -> None:
    """300² is beyond what bf16 adds up: in bf16, a sum of 1,024 equal squares stops growing at 256 of them."""
    x = torch.full((1, 1024), 300.0, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(1024, dtype=torch.bfloat16), 1e-5).unique().tolist() == [1.0]


def test_eps_bounds_the_gain() -> None:
    x = torch.full((1, 8), 1e-6)
    torch.testing.assert_close(rms_norm(x, torch.ones(8), 1e-4), x / 1e-2, rtol=1e-4, atol=0)
