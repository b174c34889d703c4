import json

import numpy as np
import pytest

from megatrain.data.checks.inspection import inspect_data
from megatrain.data.text.documents import read_documents


@pytest.fixture
def found(prepared):
    return inspect_data(prepared)


def test_lengths_are_those_of_the_documents(found, corpus, tokenizer):
    expected = [len(tokenizer.encode(document.content)) + 1 for document in read_documents([corpus], "text")]
    assert found.lengths.tokens.repeat(found.lengths.documents).tolist() == sorted(expected)
    assert found.lengths.mean == pytest.approx(np.mean(expected))
    assert found.lengths.median == sorted(expected)[59]


def test_the_histogram_counts_every_document_in_its_bin(found):
    histogram = found.lengths.histogram()
    assert sum(count for _, count in histogram) == 120
    for lower, count in histogram:
        tokens = found.lengths.tokens
        assert count == found.lengths.documents[(tokens >= lower) & (tokens < 2 * lower)].sum()


def test_text_and_json_tell_the_same(found, corpus):
    value = json.loads(json.dumps(found.as_json()))
    text = found.as_text()
    assert value["documents"] == 120
    assert f"{value['tokens']:,} tokens in 120 documents" in text
    assert str(corpus) in text
    first = next(read_documents([corpus], "text")).content
    assert value["sample"].startswith(first[:40])
    assert first[:20] in text
