"""On a GPU, each fused form against its reference: other backends than a CPU's, in the dtypes of training."""

import pytest
import torch
from torch import Tensor

from megatrain.kernels.attention import attention, attention_reference
from megatrain.kernels.cross_entropy import IGNORE_INDEX, linear_cross_entropy, linear_cross_entropy_reference
from megatrain.kernels.rms_norm import rms_norm, rms_norm_reference
from megatrain.kernels.rotary import apply_rotary, apply_rotary_reference, rotary_table
from megatrain.kernels.swiglu import swiglu, swiglu_reference
from tests.documents import cu_seqlens_of

DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a tensor, by its norm
ATTENTION_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # its backward rounds differences of near numbers


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    assert (got.float() - expected.float()).norm() <= tolerance * expected.float().norm()


def assert_alike(fused, reference, inputs: list[Tensor], tolerance: float) -> None:
    """Values and gradients; the reference in fp32, so that its own rounding is not counted."""
    outcomes = []
    for op, given in ((fused, inputs), (reference, [x.float() for x in inputs])):
        leaves = [x.detach().clone().requires_grad_() for x in given]
        out = op(*leaves)
        upstream = random(*out.shape, dtype=torch.float32, seed=9).to(out.dtype)
        outcomes.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for got, expected in zip(*outcomes, strict=True):
        assert_near(got, expected, tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(dtype) -> None:
    inputs = [random(3, 129, 1000, dtype=dtype), random(1000, dtype=dtype, seed=1)]
    assert_alike(lambda *x: rms_norm(*x, 1e-5), lambda *x: rms_norm_reference(*x, 1e-5), inputs, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu(dtype) -> None:
    inputs = [random(5, 77, 300, dtype=dtype), random(5, 77, 300, dtype=dtype, seed=1)]
    assert_alike(swiglu, swiglu_reference, inputs, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary(dtype) -> None:
    table = rotary_table(torch.arange(100_000, 100_100, device=DEVICE)[None], 64, 10000.0)
    on_cpu = rotary_table(torch.arange(100_000, 100_100)[None], 64, 10000.0)
    torch.testing.assert_close([x.cpu() for x in table], list(on_cpu), rtol=0, atol=3e-2)
    inputs = [random(1, 100, 3, 64, dtype=dtype)]
    assert_alike(
        lambda x: apply_rotary(x, *table), lambda x: apply_rotary_reference(x, *table), inputs, ROUNDING[dtype]
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("ignored", [0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(dtype, ignored, compiled) -> None:
    labels = torch.randint(0, 5003, (700,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels[: int(700 * ignored)] = IGNORE_INDEX
    inputs = [random(700, 96, dtype=dtype), random(5003, 96, dtype=dtype, seed=1)]
    assert_alike(
        lambda *x: linear_cross_entropy(*x, labels, chunk=256, compiled=compiled),
        lambda *x: linear_cross_entropy_reference(*x, labels),
        inputs,
        ROUNDING[dtype],
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_cross_entropy_never_holds_all_logits(compiled) -> None:
    tokens, width, vocabulary, chunk = 8192, 64, 32_000, 512
    hidden, weight = (
        random(tokens, width, dtype=torch.bfloat16),
        random(vocabulary, width, dtype=torch.bfloat16, seed=1),
    )
    labels = torch.zeros(tokens, dtype=torch.int64, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(
        hidden.requires_grad_(), weight.requires_grad_(), labels, chunk=chunk, compiled=compiled
    ).backward()
    logits_bytes = 4 * tokens * vocabulary
    assert torch.cuda.max_memory_allocated() - before < logits_bytes / 4


DOCUMENTS = {
    "plain": None,
    "one": torch.zeros(2, 300, dtype=torch.int32),
    "packed": torch.stack([torch.arange(300) // 70, (torch.arange(300) >= 1).int()]).int(),
}


@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.parametrize("key_value_heads", [8, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(dtype, key_value_heads, documents) -> None:
    cu_seqlens = None if documents is None else cu_seqlens_of(documents).to(DEVICE)
    inputs = [random(2, 300, heads, 64, dtype=dtype, seed=heads) for heads in (8, key_value_heads, key_value_heads)]
    assert_alike(
        lambda *x: attention(*x, cu_seqlens),
        lambda *x: attention_reference(*x, cu_seqlens),
        inputs,
        ATTENTION_ROUNDING[dtype],
    )


def test_attention_of_a_head_size_that_no_kernel_takes() -> None:
    cu_seqlens = torch.tensor([0, 70, 300], dtype=torch.int32, device=DEVICE)
    inputs = [random(1, 300, heads, 60, dtype=torch.bfloat16, seed=heads) for heads in (8, 2, 2)]
    tolerance = ATTENTION_ROUNDING[torch.bfloat16]
    assert_alike(
        lambda *x: attention(*x, cu_seqlens), lambda *x: attention_reference(*x, cu_seqlens), inputs, tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_holds_nothing_quadratic(dtype) -> None:
    size = 32_768  # its scores would be 4 GiB a head in fp32
    cu_seqlens = torch.tensor([0, size // 3, size], dtype=torch.int32, device=DEVICE)
    inputs = [random(1, size, heads, 64, dtype=dtype, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    for bounds in (None, cu_seqlens):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention(*inputs, bounds).sum().backward()
        assert torch.cuda.max_memory_allocated() - before < 2**30


def test_documents_do_not_leak() -> None:
    """Exactly, wherever the boundary lies."""
    cu_seqlens = torch.tensor([0, 190, 400], dtype=torch.int32, device=DEVICE)
    outputs = []
    for noise in (0.0, 50.0):
        inputs = [random(1, 400, heads, 64, dtype=torch.bfloat16, seed=heads) for heads in (4, 2, 2)]
        for x in inputs:
            x[:, :190] += noise
        outputs.append(attention(*inputs, cu_seqlens))
    assert torch.equal(outputs[0][:, 190:], outputs[1][:, 190:])
    assert not torch.equal(outputs[0][:, :190], outputs[1][:, :190])
