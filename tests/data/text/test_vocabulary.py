"""A tokenizer.json of any origin, read without the library."""

import time

import pytest

from megatrain.base.errors import DataError
from megatrain.data.text.vocabulary import parse_vocabulary


@pytest.mark.parametrize("part", [b'"model": {"vocab": [%s0]}', b'"model": {"vocab": {"a": 1}}, "added_tokens": [%s0]'])
def test_the_first_of_a_million_mistakes_is_enough(part):
    began = time.process_time()
    with pytest.raises(DataError, match="should be a valid"):
        parse_vocabulary(b"{%s}" % (part % (b"0," * 500_000)), "x")
    assert time.process_time() - began < 1.5
