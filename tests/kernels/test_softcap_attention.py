"""Attention with a soft cap on its scores: values and gradients of the plain reference, nothing quadratic kept."""

import pytest
import torch

from megatrain.kernels import softcap_attention
from megatrain.kernels.attention import attention, attention_reference
from megatrain.model.window import BIDIRECTIONAL, CAUSAL
from tests.documents import cu_seqlens_of
from tests.kernels.test_attention import DOCUMENTS, TOLERANCE, random_inputs

CAP = 0.8  # scores reach it


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softcap_attention, "QUERIES", 5)


@pytest.mark.parametrize("window", [CAUSAL, BIDIRECTIONAL, (3, 0), (2, 2), (0, 0), (2, -1), (200, 200)], ids=str)
@pytest.mark.parametrize("documents", DOCUMENTS)
def test_values_and_gradients_of_the_reference(documents, window) -> None:
    inputs, ids = random_inputs(), DOCUMENTS[documents]
    cu_seqlens = None if ids is None else cu_seqlens_of(ids)
    upstream = torch.randn(2, 13, 6, 8, generator=torch.Generator().manual_seed(1))
    options = {"window": window, "scale": 0.7, "softcap": CAP}

    fused = attention(*inputs, cu_seqlens, **options)
    expected = attention_reference(*inputs, cu_seqlens, **options)
    torch.testing.assert_close(fused, expected, **TOLERANCE[torch.float32])
    if window != (0, 0) and documents != "one token each":
        assert (expected - attention_reference(*inputs, cu_seqlens, window=window, scale=0.7)).abs().max() > 0.01
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (fused, expected))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_value_heads", [6, 1])
def test_in_half_precision(key_value_heads) -> None:
    inputs = random_inputs(key_value_heads=key_value_heads, dtype=torch.bfloat16)
    outputs = [op(*inputs, softcap=CAP) for op in (attention, attention_reference)]
    torch.testing.assert_close(*outputs, **TOLERANCE[torch.bfloat16])
    upstream = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    for got, want in zip(*(torch.autograd.grad(out, inputs, upstream) for out in outputs), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[torch.bfloat16])


def test_a_cap_that_no_score_comes_near_changes_nothing() -> None:
    inputs = random_inputs()
    torch.testing.assert_close(attention(*inputs, softcap=1e4), attention(*inputs), rtol=1e-5, atol=1e-5)


def test_documents_never_see_each_other() -> None:
    q, k, v = (x.detach() for x in random_inputs())
    cu_seqlens = cu_seqlens_of(DOCUMENTS["packed"])
    before = attention(q, k, v, cu_seqlens, softcap=CAP)
    for x in (q, k, v):
        x[0, 5:] += 1.0
    after = attention(q, k, v, cu_seqlens, softcap=CAP)
    assert torch.equal(before[0, :5], after[0, :5])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, 5:], after[0, 5:])


def test_the_operator_is_what_a_compiler_is_told() -> None:
    q, k, v = random_inputs(size=7)
    cu_seqlens = torch.tensor([0, 7, 14], dtype=torch.int32)
    op = torch.ops.megatrain.softcap_attention.default
    torch.library.opcheck(op, (q, k, v, cu_seqlens, -1, 0, 0.7, CAP))
