"""The chunked op against the plain one, whole and over slices of the vocabulary."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from megatrain.kernels.cross_entropy import (
    IGNORE_INDEX,
    NO_TERMS,
    LossTerms,
    Projection,
    VocabSlice,
    _loss_and_grad,
    _loss_and_grad_functional,
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_loss,
    linear_loss_reference,
)

N, D, V = 37, 12, 29
TERMS = [LossTerms(z_loss=1e-2), LossTerms(label_smoothing=0.1), LossTerms(z_loss=0.3, label_smoothing=0.4)]


def random_inputs(dtype=torch.float32, ignored=0.3, tokens=N):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, weight, labels


def loss_and_gradients(op, hidden, weight, labels, scale=1.0, **options):
    """Gradients of the scaled loss, as the engine scales it."""
    loss = op(hidden, weight, labels, **options)
    return (loss, *torch.autograd.grad(loss * scale, (hidden, weight)))


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk", [1, 5, N - 1, N, 1000])
def test_fp32_is_the_reference(chunk, ignored) -> None:
    inputs = random_inputs(ignored=ignored)
    got = loss_and_gradients(linear_cross_entropy, *inputs, scale=0.37, chunk=chunk)
    expected = loss_and_gradients(linear_cross_entropy_reference, *inputs, scale=0.37)
    for fused, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def with_terms(hidden, weight, labels, *, terms, **options):
    return linear_loss(hidden, Projection(weight), labels, terms, **options)[0]


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_terms_of_the_loss_are_those_of_the_reference(chunk, terms) -> None:
    inputs = random_inputs()
    got = loss_and_gradients(with_terms, *inputs, terms=terms, scale=0.37, chunk=chunk)
    expected = loss_and_gradients(linear_cross_entropy_reference, *inputs, terms=terms, scale=0.37)
    assert (got[0] - linear_cross_entropy(*inputs)).abs() > 0.1, "a loss of its own"
    for fused, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_the_cross_entropy_is_reported_without_the_terms(terms) -> None:
    hidden, weight, labels = random_inputs()
    loss, cross_entropy = linear_loss(hidden, Projection(weight), labels, terms, chunk=10)
    alone = linear_cross_entropy(hidden, weight, labels, chunk=10).detach()
    torch.testing.assert_close(cross_entropy, alone, rtol=0, atol=0)
    assert loss.requires_grad
    assert not cross_entropy.requires_grad


def random_bias() -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(7)).requires_grad_()


@pytest.mark.parametrize("compiled", [False, True], ids=["", "functional"])
@pytest.mark.parametrize("terms", [NO_TERMS, TERMS[-1]], ids=["plain", "terms"])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("biased", [False, True])
def test_bias_and_soft_cap_are_those_of_the_reference(biased, softcap, terms, compiled, monkeypatch) -> None:
    module = "megatrain.kernels.cross_entropy._compiled_loss_and_grad"
    monkeypatch.setattr(module, lambda: _loss_and_grad_functional)  # what is compiled, uncompiled
    hidden, weight, labels = random_inputs()
    projection = Projection(weight, random_bias() if biased else None, softcap)
    parameters = [hidden, weight, *([projection.bias] if biased else [])]
    got = linear_loss(hidden, projection, labels, terms, chunk=10, compiled=compiled)[0]
    expected = linear_loss_reference(hidden, projection, labels, terms)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(loss * 0.37, parameters) for loss in (got, expected))
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_terms_of_ignored_tokens_are_nothing() -> None:
    for value in loss_and_gradients(with_terms, *random_inputs(ignored=1.0), terms=TERMS[-1]):
        assert (value == 0).all()


@pytest.mark.parametrize("terms", [NO_TERMS, TERMS[-1]], ids=["plain", "terms"])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("start", [None, 0, 20], ids=["whole", "first slice", "second slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_compiled_has_the_bits_of_what_is_not(dtype, start, softcap, terms) -> None:
    hidden, weight, labels = (x.detach() for x in random_inputs(dtype))
    projection = Projection(weight, random_bias().detach().to(dtype), softcap)
    vocab = None if start is None else VocabSlice(start, lambda x, op: x.clone(), 2 * V)
    for got, expected in zip(
        _loss_and_grad_functional(hidden, projection, labels, vocab, terms),
        _loss_and_grad(hidden, projection, labels, vocab, terms),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("terms", [NO_TERMS, TERMS[-1]], ids=["plain", "terms"])
def test_it_compiles_to_one_graph_without_a_break(terms) -> None:
    torch._dynamo.reset()
    hidden, weight, labels = (x.detach() for x in random_inputs())
    explained = torch._dynamo.explain(_loss_and_grad_functional)(hidden, Projection(weight), labels, None, terms)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_a_second_backward_pass_is_refused_and_not_scaled_twice() -> None:
    hidden, weight, labels = random_inputs()
    loss = linear_cross_entropy(hidden, weight, labels) * 0.5
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_all_ignored_is_exactly_nothing() -> None:
    for value in loss_and_gradients(linear_cross_entropy, *random_inputs(ignored=1.0)):
        assert (value == 0).all()


@pytest.mark.parametrize("chunk", [7, 1000])
def test_bf16_is_near_fp32(chunk) -> None:
    hidden, weight, labels = random_inputs(torch.bfloat16)
    got = loss_and_gradients(linear_cross_entropy, hidden, weight, labels, chunk=chunk)
    exact = loss_and_gradients(linear_cross_entropy_reference, hidden.float(), weight.float(), labels)
    assert [value.dtype for value in got] == [torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(got[0], exact[0], rtol=1e-2, atol=0)
    for fused, plain in zip(got[1:], exact[1:], strict=True):
        assert (fused.float() - plain).norm() < 1e-2 * plain.norm()


def test_the_weight_gradient_is_summed_in_fp32() -> None:
    """4,096 equal contributions: a bf16 sum of them stops growing after 256."""
    tokens = 4096
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(hidden, weight, torch.zeros(tokens, dtype=torch.int64), chunk=1).backward()
    assert weight.grad.flatten().tolist() == [-tokens / 2, tokens / 2]


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = random_inputs()
    got = linear_cross_entropy(100 * hidden, 100 * weight, labels)
    torch.testing.assert_close(got, linear_cross_entropy_reference(100 * hidden, 100 * weight, labels))


def test_no_tokens() -> None:
    loss, *gradients = loss_and_gradients(linear_cross_entropy, *random_inputs(tokens=0))
    assert loss == 0
    assert [gradient.shape for gradient in gradients] == [(0, D), (V, D)]


def test_gradients_are_made_only_where_wanted() -> None:
    hidden, weight, labels = random_inputs()

    def saved_for_backward(hidden, weight):
        loss = linear_cross_entropy(hidden, weight, labels)
        return None if loss.grad_fn is None else [x is not None for x in loss.grad_fn.saved_tensors]

    assert saved_for_backward(hidden, weight) == [True, True, False]
    assert saved_for_backward(hidden, weight.detach()) == [True, False, False]
    assert saved_for_backward(hidden.detach(), weight) == [False, True, False]
    with torch.no_grad():
        assert saved_for_backward(hidden, weight) is None


def test_without_gradients_none_is_computed() -> None:
    """An evaluation under no_grad must not pay for two more matrix products a chunk."""
    hidden, weight, labels = random_inputs()
    with torch.no_grad(), torch.profiler.profile() as profile:
        linear_cross_entropy(hidden, weight, labels)
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::mm") == 1


class Ranks:
    """Stands for the ranks that hold the slices: a thread each, and a reduction in which all of them meet."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count, timeout=30)
        self._given: dict[int, torch.Tensor] = {}

    def reduce(self, rank: int, x: torch.Tensor, op: str) -> torch.Tensor:
        self._given[rank] = x
        self._barrier.wait()
        stacked = torch.stack([self._given[r] for r in range(self.count)])
        self._barrier.wait()  # nobody gives the next before all have taken this one
        return stacked.amax(0) if op == "max" else stacked.sum(0)

    def run(self, function) -> list:
        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(function, range(self.count)))


@pytest.mark.parametrize("terms", [NO_TERMS, TERMS[-1]], ids=["plain", "terms"])
@pytest.mark.parametrize("ignored", [0.3, 1.0])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_slices_of_the_vocabulary_agree_with_the_whole(slices, ignored, terms) -> None:
    hidden, weight, labels = random_inputs(ignored=ignored)
    whole = loss_and_gradients(linear_cross_entropy_reference, hidden, weight, labels, terms=terms)
    ranks = Ranks(slices)
    bounds = [V * rank // slices for rank in range(slices + 1)]  # uneven: 29 rows

    def one(rank: int):
        part = weight.detach()[bounds[rank] : bounds[rank + 1]].requires_grad_()
        vocab = VocabSlice(bounds[rank], lambda x, op: ranks.reduce(rank, x, op), V)
        own = hidden.detach().requires_grad_()
        return loss_and_gradients(with_terms, own, part, labels, terms=terms, vocab=vocab, chunk=10)

    losses, hidden_shares, weight_parts = zip(*ranks.run(one), strict=True)

    assert all(torch.equal(loss, losses[0]) for loss in losses), "every rank has the same loss"
    torch.testing.assert_close(losses[0], whole[0])
    torch.testing.assert_close(torch.stack(hidden_shares).sum(0), whole[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(weight_parts), whole[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "functional"])
@pytest.mark.parametrize("terms", [NO_TERMS, TERMS[-1]], ids=["plain", "terms"])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_rows_behind_the_classes_are_as_if_they_were_not_there(slices, terms, compiled, monkeypatch) -> None:
    """Of four slices, the last two are padding alone."""
    if compiled:
        monkeypatch.setattr(
            "megatrain.kernels.cross_entropy._compiled_loss_and_grad", lambda: _loss_and_grad_functional
        )
    classes, padded = 5, 12
    hidden, weight, labels = random_inputs()
    labels = torch.where(labels == IGNORE_INDEX, labels, labels % classes)
    few = weight.detach()[:classes].requires_grad_()
    whole = loss_and_gradients(linear_cross_entropy_reference, hidden, few, labels, terms=terms)
    ranks = Ranks(slices)

    def loss(own, part, labels, *, vocab):
        return linear_loss(own, Projection(part, classes=classes), labels, terms, vocab, chunk=10, compiled=compiled)[0]

    def one(rank: int):
        part = weight.detach()[:padded].chunk(slices)[rank].clone().requires_grad_()
        vocab = VocabSlice(rank * padded // slices, lambda x, op: ranks.reduce(rank, x, op), padded)
        return loss_and_gradients(loss, hidden.detach().requires_grad_(), part, labels, vocab=vocab)

    losses, hidden_shares, weight_parts = zip(*ranks.run(one), strict=True)
    torch.testing.assert_close(losses[0], whole[0])
    torch.testing.assert_close(torch.stack(hidden_shares).sum(0), whole[1], rtol=1e-5, atol=1e-5)
    gradient = torch.cat(weight_parts)
    torch.testing.assert_close(gradient[:classes], whole[2], rtol=1e-5, atol=1e-5)
    assert not gradient[classes:].any()
