import pytest
import torch

from megatrain.kernels.swiglu import swiglu, swiglu_reference

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 64), (0, 4)], ids=str)
def test_values_and_gradients_of_the_reference(shape, dtype) -> None:
    torch.manual_seed(0)
    gate, up, upstream = (2 * torch.randn(3, *shape)).to(dtype)
    outcomes = []
    for op in (swiglu, swiglu_reference):
        inputs = gate.clone().requires_grad_(), up.clone().requires_grad_()
        out = op(*inputs)
        assert out.dtype == dtype
        outcomes.append((out, *torch.autograd.grad(out, inputs, upstream)))
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE[dtype])


def test_it_stays_finite_far_out() -> None:
    gate = torch.tensor([-1e4, 1e4])
    assert swiglu(gate, torch.ones(2)).tolist() == [0.0, 1e4]
