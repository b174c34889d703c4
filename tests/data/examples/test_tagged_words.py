"""Words with tags as rows of tokens: each tag at the first token of its word."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.classification import ClassifiedSet
from megatrain.data.examples.tagged_words import read_tagged, with_tags
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.families.llama.section import LlamaSection
from megatrain.tasks.token_classification.section import TokenClassificationSection
from tests.tokenizer_kinds import KINDS

LLAMA = LlamaSection(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, vocab_size=512)
LABELS = ("B-X", "I-X", "O")
WORDS = ["the", "answer", "to", "question;", "naïve", "22]"]
TAGS = ["O", "B-X", "O", "B-X", "I-X", "O"]


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(path: str, tokenizer: Tokenizer, *, sequence_length: int = 64, **fields: Any) -> ClassifiedSet:
    section = TokenClassificationSection(**{"labels": LABELS} | fields)
    return read_tagged([path], tokenizer, section, sequence_length=sequence_length, model=LLAMA)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tag_is_at_the_first_token_of_its_word(make_tokenizer, tmp_path, kind) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer(kind, front="<s> ", behind=" </s>")
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    words = [word for word in WORDS if word != "naïve"]
    tags = [tag for word, tag in zip(WORDS, TAGS, strict=True) if word != "naïve"]
    (row,) = read(write(tmp_path / "rows.jsonl", {"tokens": words, "tags": tags}), tokenizer).rows
    encoded = theirs(" ".join(words), return_offsets_mapping=True)
    (end,) = row.ends
    assert row.tokens[:end].tolist() == encoded["input_ids"]
    assert row.labels is not None
    places = [place for place, label in enumerate(row.labels.tolist()) if label != -100]
    assert [LABELS[row.labels[place]] for place in places] == tags
    first = {}
    for place, (begin, stop) in enumerate(encoded["offset_mapping"]):
        text = " ".join(words)[begin:stop]
        if text.strip():
            first.setdefault(" ".join(words)[:stop].count(" "), place)
    assert places == [first[word] for word in range(len(words))]


def test_tags_are_found_and_what_is_wrong_is_told(tmp_path, tokenizer) -> None:
    good = {"tokens": ["who", "what"], "tags": ["O", "B-X"]}
    path = write(tmp_path / "rows.jsonl", good)
    assert with_tags(TokenClassificationSection(), [path]).labels == ("B-X", "O")
    for row, said in (
        ({"tokens": ["who"]}, "tags: is not there as a list of texts; the row has tokens. task.tags_field names"),
        ({"tokens": ["who"], "tags": [3]}, "tags: is not there as a list of texts"),
        ({"tokens": ["who"], "tags": ["O", "O"]}, "tags: has 2 tags for 1 words"),
        ({"tokens": ["who me"], "tags": ["O"]}, "tokens: 'who me': is no word"),
        (
            {"tokens": ["who"], "tags": ["B-Y"]},
            "tags: 'B-Y': is not one of the 3 labels that are trained ('B-X', 'I-X'",
        ),
    ):
        path = write(tmp_path / "rows.jsonl", good, row)
        with pytest.raises(DataError) as caught:
            read(path, tokenizer)
        assert str(caught.value).startswith(f"{path}:2: {said}")


def test_what_is_cut_is_counted(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", {"tokens": WORDS, "tags": TAGS})
    found = read(path, tokenizer, sequence_length=8)
    assert found.warnings()[0].startswith(f"{path}: 1 of 1 examples, cut to 8 tokens, lose ")
    assert 1 <= found.rows[0].targets < len(WORDS)
