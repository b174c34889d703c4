import pytest
import torch

from megatrain.kernels.attention import attention, attention_reference
from megatrain.kernels.document_attention import tiles
from megatrain.model.window import BIDIRECTIONAL, CAUSAL
from tests.documents import cu_seqlens_of

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}


def random_inputs(batch=2, size=13, heads=6, key_value_heads=2, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, size, count, width, generator=generator).to(dtype).requires_grad_()
        for count in (heads, key_value_heads, key_value_heads)
    ]


DOCUMENTS = {
    "plain": None,
    "packed": torch.tensor([[0] * 4 + [1] * 1 + [2] * 8, [0] * 13], dtype=torch.int32),
    "one token each": torch.arange(13, dtype=torch.int32).expand(2, -1),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.parametrize("key_value_heads", [6, 2, 1])
def test_values_and_gradients_of_the_reference(key_value_heads, documents, dtype) -> None:
    inputs = random_inputs(key_value_heads=key_value_heads, dtype=dtype)
    upstream = torch.randn(2, 13, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)

    cu_seqlens = None if documents is None else cu_seqlens_of(documents)
    fused = attention(*inputs, cu_seqlens)
    expected = attention_reference(*inputs, cu_seqlens)

    assert fused.dtype == dtype
    torch.testing.assert_close(fused, expected, **TOLERANCE[dtype])
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (fused, expected))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[dtype])


WINDOWS = [CAUSAL, BIDIRECTIONAL, (3, 0), (2, 2), (0, 0), (2, -1), (-1, 3), (12, 0), (200, 200)]


@pytest.mark.parametrize("documents", [*DOCUMENTS, "long"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_and_scale(window, documents) -> None:
    """Values and gradients, also of documents that are longer than a tile."""
    size = 150 if documents == "long" else 13
    ids = (torch.arange(size) >= 9).int().expand(2, -1) if documents == "long" else DOCUMENTS[documents]
    inputs = random_inputs(size=size)
    cu_seqlens = None if ids is None else cu_seqlens_of(ids)
    upstream = torch.randn(2, size, 6, 8, generator=torch.Generator().manual_seed(1))

    fused = attention(*inputs, cu_seqlens, window=window, scale=0.7)
    expected = attention_reference(*inputs, cu_seqlens, window=window, scale=0.7)

    torch.testing.assert_close(fused, expected, **TOLERANCE[torch.float32])
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (fused, expected))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [(3, 0), (2, 2), BIDIRECTIONAL], ids=str)
def test_gradients_in_half_precision(window) -> None:
    inputs = random_inputs(size=150, dtype=torch.bfloat16)
    outputs = [op(*inputs, window=window) for op in (attention, attention_reference)]
    upstream = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    for got, want in zip(*(torch.autograd.grad(out, inputs, upstream) for out in outputs), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[torch.bfloat16])


def test_a_window_computes_in_proportion_to_the_length() -> None:
    """No tile has more than a window's worth of keys on each side of its queries, however long the document."""
    for size in (1_000, 10_000):
        found = list(tiles(torch.tensor([0, size], dtype=torch.int32), (99, 0)))
        assert sum(tile.queries.stop - tile.queries.start for tile in found) == size
        assert max(tile.keys.stop - tile.keys.start for tile in found) <= 200
        assert len(found) == size // 100


@pytest.mark.parametrize("window", [CAUSAL, BIDIRECTIONAL, (2, 2)], ids=str)
@pytest.mark.parametrize("op", [attention, attention_reference], ids=["fused", "reference"])
def test_documents_do_not_leak(op, window) -> None:
    """Exactly: whatever stands in one document, the bits of the others' outputs and gradients stay the same."""
    cu_seqlens = torch.tensor([0, 4, 9, 13], dtype=torch.int32)
    outputs, gradients = [], []
    for noise in (0.0, 100.0):
        inputs = random_inputs(batch=1)
        with torch.no_grad():
            for x in inputs:
                x[:, 4:9] += noise
        out = op(*inputs, cu_seqlens, window=window)
        outputs.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs))
    for before, after in [outputs, *zip(*gradients, strict=True)]:
        assert torch.equal(before[:, :4], after[:, :4])
        assert torch.equal(before[:, 9:], after[:, 9:])
    assert not torch.allclose(outputs[0][:, 4:9], outputs[1][:, 4:9])


def test_causal() -> None:
    outputs = []
    for value in (0.0, 100.0):
        inputs = random_inputs()
        with torch.no_grad():
            for x in inputs:
                x[:, 7:] += value
        outputs.append(attention(*inputs))
    torch.testing.assert_close(outputs[0][:, :7], outputs[1][:, :7], rtol=0, atol=1e-6)
    assert not torch.allclose(outputs[0][:, 7:], outputs[1][:, 7:])


def test_grouped_queries_share_neighbouring_heads() -> None:
    q, k, v = random_inputs(heads=4, key_value_heads=2)
    with torch.no_grad():
        v[:, :, 1] = 0.0
    out = attention(q, k, v)
    assert (out[:, :, 2:] == 0).all()
    assert (out[:, :, :2] != 0).all()


def test_one_document_is_plain_causal_attention() -> None:
    inputs = random_inputs()
    one = torch.tensor([0, 13, 26], dtype=torch.int32)
    torch.testing.assert_close(attention(*inputs, one), attention(*inputs))
