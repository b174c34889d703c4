import json
import os
import shutil

import numpy as np
import pytest

from megatrain.base.errors import DataError
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


def test_names_that_would_steer_a_terminal_or_are_no_text(tmp_path, corpus, tokenizer_folder, prepare_text):
    source = shutil.copy(corpus, tmp_path / os.fsdecode(b"\x1b[2J\xff.jsonl"))
    prepare_text(source, tmp_path / "out", tokenizer_folder)
    assert r"\x1b[2J\udcff.jsonl" in inspect_data(tmp_path / "out").as_text()


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"name": "x"}', b'{"name": 3, "bytes": 1, "sha256": ""}', b"[" * 9999]
)
def test_a_list_of_sources_that_is_none(tmp_path, prepared, line):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / "sources.jsonl").write_bytes(line)
    with pytest.raises(DataError, match=r"sources\.jsonl:1: "):
        inspect_data(copy).as_text()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", None])
def test_a_tokenizer_that_is_none(tmp_path, prepared, content):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    if content is not None:
        (copy / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: is (missing|not the tokenizer)"):
        inspect_data(copy)
