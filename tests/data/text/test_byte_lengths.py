"""Bytes of tokens add up to those of the text."""

import pytest

from megatrain.data.text.byte_lengths import byte_lengths
from megatrain.data.text.tokenizer import Tokenizer
from tests.tokenizer_kinds import TEXTS


@pytest.mark.parametrize(("kind", "front"), [("byte_level", 0), ("metaspace", 1), ("sentencepiece", 1), ("unigram", 1)])
def test_they_add_up(make_tokenizer, kind, front) -> None:
    """Where the tokenizer puts a space in front of a text, that is a byte as well."""
    tokenizer = Tokenizer.load(make_tokenizer(kind))
    lengths, text = byte_lengths(tokenizer), TEXTS[0].split("\n")[0].strip()
    text += " é☃" if kind == "byte_level" else ""
    assert lengths is not None
    assert sum(lengths[number] for number in tokenizer.encode(text)) == len(text.encode()) + front
    assert lengths[tokenizer.eos_id] == 0


def test_a_tokenizer_that_drops_spaces_has_none(make_tokenizer) -> None:
    assert byte_lengths(Tokenizer.load(make_tokenizer("wordpiece"))) is None
