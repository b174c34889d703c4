"""Texts with two marked entities as tokens, and where their relation stands."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.classification import ClassifiedSet
from megatrain.data.examples.relations import check_rows, read_relations, with_relations
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.relation_extraction.section import RelationExtractionSection
from tests.data.examples.test_classification import BERT, LLAMA

WORDS = ["what", "is", "the", "answer", "to", "who"]
MARKED = "what is [E2] the answer [/E2] to [E1] who [/E1]"


def row(**fields: Any) -> dict[str, Any]:
    return {"tokens": WORDS, "head": [5, 6], "tail": {"start": 2, "end": 4}, "relation": "of"} | fields


def in_text(text: str, head: str, tail: str) -> dict[str, Any]:
    places = {key: [text.index(part), text.index(part) + len(part)] for key, part in (("head", head), ("tail", tail))}
    return {"text": text, "relation": "of", **places}


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def read(
    path: str, tokenizer: Tokenizer, *, model: Any = BERT, sequence_length: int = 96, **fields: Any
) -> ClassifiedSet:
    section = RelationExtractionSection(**{"labels": ("none", "of")} | fields)
    return read_relations([path], tokenizer, section, sequence_length=sequence_length, model=model)


@pytest.mark.parametrize("kind", ["byte_level", "wordpiece"])
def test_tokens_are_those_of_the_marked_text(tmp_path, make_tokenizer, kind) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer(kind, front="<s> ", behind=" </s>")
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    texts = [in_text("what is the answer to who", "who", "the answer"), in_text("(what),who is", "what", "who")]
    for given, text in ((row(), MARKED), (texts[0], MARKED), (texts[1], "( [E1] what [/E1] ), [E2] who [/E2] is")):
        path = write(tmp_path / "rows.jsonl", given)
        expected = theirs(text, return_offsets_mapping=True)
        head = next(n for n, (_, end) in enumerate(expected["offset_mapping"]) if end > text.index("[E1]"))
        for model, place in ((BERT, head), (LLAMA, len(expected["input_ids"]) - 1)):
            (one,) = read(path, tokenizer, model=model).rows
            assert one.tokens[: one.ends[0]].tolist() == expected["input_ids"]
            assert one.labels is not None
            assert [(n, label) for n, label in enumerate(one.labels.tolist()) if label != -100] == [(place, 1)]


def test_labels_are_found_and_long_texts_are_cut_around_the_entities(tmp_path, make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
    long = row(tokens=["what"] * 40 + WORDS + ["who"] * 40, head=[45, 46], tail=[42, 44], relation="none")
    path = write(tmp_path / "rows.jsonl", row(), long)
    assert with_relations(RelationExtractionSection(), [path]).classes == ("none", "of")
    found = read(path, tokenizer, sequence_length=64)
    assert len(found.rows[1].tokens) == 65
    assert tokenizer.decode(found.rows[-1].tokens[: found.rows[-1].ends[0]].tolist()).rstrip().endswith("who [/E1]")
    assert "1 of 2 examples, cut to 64 tokens" in found.warnings()[0]
    assert len(read(path, tokenizer, sequence_length=64, truncation="drop").rows) == 1
    with pytest.raises(DataError, match=r"rows.jsonl:2: has \d+ tokens, more than"):
        read(path, tokenizer, sequence_length=64, truncation="error")
    far = write(tmp_path / "far.jsonl", row(tokens=["what"] * 90, head=[0, 1], tail=[88, 90]))
    with pytest.raises(DataError, match=r"far.jsonl:1: has \d+ tokens from the first marker to the last one, more"):
        read(far, tokenizer, sequence_length=64)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": None}, "neither tokens is there as a list of words, nor text as text"),
        ({"head": None}, "head: is not there as [begin, end] in words"),
        ({"head": [5, 7]}, "head: [5, 7]: is no part of the 6 words"),
        ({"head": [3, 6]}, "head and tail share words: markers cannot be nested"),
        ({"relation": 3}, "relation: is not there as text"),
        ({"relation": "on"}, "relation: 'on': is not one of the 2 labels that are trained"),
    ],
)
def test_rows_that_cannot_be_learnt_from(tmp_path, fields, said) -> None:
    path = write(tmp_path / "rows.jsonl", row(), row(**fields))
    with pytest.raises(DataError) as caught:
        check_rows([path], RelationExtractionSection(labels=("none", "of")))
    assert str(caught.value).startswith(f"{path}:2: {said}")
