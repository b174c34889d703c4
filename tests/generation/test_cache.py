"""With a cache, several prompts at once, a model says what it says without, one by one."""

import pytest
import torch

from megatrain.generation.cache import key_value_cache
from megatrain.generation.decode import NextLogits, continued, with_cache, without_cache
from megatrain.generation.sampling import Sampling
from megatrain.model.attention import AttentionCore
from tests.generation.families import FIELDS, VOCABULARY, model_of, prompts, section_of

NEW = 12


def kept(next_logits: NextLogits, logits: list[torch.Tensor]) -> NextLogits:
    def spy(new):
        logits.append(next_logits(new))
        return logits[-1]

    return spy


def greedy(next_logits: NextLogits, texts: list[list[int]]) -> list[list[int]]:
    return continued(
        next_logits,
        texts,
        Sampling(repetition_penalty=1.5),
        max_new_tokens=NEW,
        ends=lambda made: False,
        vocab_size=VOCABULARY,
    )


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("multiple", [1, 3])
def test_logits_and_texts_are_those_without_a_cache(name, multiple) -> None:
    """`multiple`: positions are filled up, as where ranks share them out."""
    model, texts = model_of(section_of(name)), prompts()
    expected: list[torch.Tensor] = []
    plain = greedy(kept(without_cache(model), expected), texts)
    found: list[torch.Tensor] = []

    class Filled:
        positions_multiple = multiple
        whole = same = any = staticmethod(lambda x: x)

    with with_cache(model, places=14 + NEW, ranks=Filled()) as next_logits:
        assert greedy(kept(next_logits, found), texts) == plain
    assert len(found) == len(expected) == NEW
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert len({token for text in plain for token in text}) > 4, "else it says nothing of attention"


@pytest.mark.parametrize("name", ["pattern", "gpt"])
def test_one_by_one_as_at_once(name) -> None:
    model, texts = model_of(section_of(name)), prompts()
    with with_cache(model, places=14 + NEW) as next_logits:
        together = greedy(next_logits, texts)
    for text, expected in zip(texts, together, strict=True):
        with with_cache(model, places=len(text) + NEW) as next_logits:
            assert greedy(next_logits, [text]) == [expected]


def test_several_tokens_may_follow_at_once() -> None:
    """As when a conversation goes on: windows and masks of more than one position."""
    model = model_of(section_of("pattern"))
    first, second = [3, 9, 27, 81, 11, 7], [5, 25, 60, 4, 4]
    with torch.no_grad(), with_cache(model, places=11) as next_logits:
        next_logits([first, first[:2]])
        found = next_logits([second, second[:1]])
    with torch.no_grad():
        whole = model(torch.tensor([first + second]))[0, -1]
        short = model(torch.tensor([first[:2] + second[:1]]))[0, -1]
    torch.testing.assert_close(found, torch.stack([whole, short]), rtol=1e-5, atol=2e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of(section_of("llama"))
    ids = torch.tensor([[1, 2, 3]])
    before, modules = model(ids), list(model.modules())
    with key_value_cache(model, 8):
        assert not any(isinstance(module, AttentionCore) for module in model.modules())
    assert list(model.modules()) == modules
    assert torch.equal(model(ids), before)


def test_a_cache_of_a_window_reads_what_it_sees() -> None:
    """Of 14 places, the 5 of the window and those that the shorter sequences have."""
    with key_value_cache(model_of(section_of("mistral")), 20) as cache:
        cache.feed([[1] * 14, [1] * 13], torch.device("cpu"))
        cache.feed([[1], [1]], torch.device("cpu"))
        assert cache.seen((4, 0)) == (9, 15)
        assert cache.seen((-1, 0)) == (0, 15)
