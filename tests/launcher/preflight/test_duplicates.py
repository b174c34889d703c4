"""Examples of the validation that are trained on are named by file and line."""

import json

import pytest

from launcher.preflight.duplicates import check_duplicates
from megatrain.data.examples.example_set import read_example_set
from megatrain.data.examples.preference_pairs import read_preferences
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.sft.section import SFTSection
from tests.data.examples.test_example_set import model


@pytest.fixture
def read(make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))

    def read(name, *prompts, **fields):
        lines = (json.dumps({"id": [name, n], "prompt": p, "response": "me"}) for n, p in enumerate(prompts))
        (tmp_path / name).write_text("\n\n".join(lines))
        section = SFTSection(**fields)
        return read_example_set([name], tokenizer, section, sequence_length=64, model=model(10**6))

    return read


def test_each_pair_by_file_and_line(read) -> None:
    (found,) = check_duplicates(read("a.jsonl", "who", "what", "where"), read("b.jsonl", "when", "where", "who"))
    assert found.level == "warning"
    assert "2 of 3 examples are in finetune.train as well: b.jsonl:3 = a.jsonl:5, b.jsonl:5 = a.jsonl:1. " in found.text


def test_at_most_ten_are_named(read) -> None:
    same = [f"who {number}" for number in range(13)]
    (found,) = check_duplicates(read("a.jsonl", *same), read("b.jsonl", *same))
    assert found.text.count(" = ") == 10
    assert "a.jsonl:19 and 3 more. " in found.text


def test_where_lines_are_not_examples_one_by_one(read) -> None:
    train = read("a.jsonl", "who " * 99, "what", truncation="drop")
    (found,) = check_duplicates(train, read("b.jsonl", "what"))
    assert "b.jsonl:1 = a.jsonl example 1. " in found.text


def test_others_are_no_duplicates(read) -> None:
    assert list(check_duplicates(read("a.jsonl", "who", "what"), read("b.jsonl", "when"))) == []


def test_both_answers_of_a_preference_are_one_example(make_tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))

    def read(name, *answers):
        rows = ({"prompt": "who", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers)
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return read_preferences([name], tokenizer, PreferenceSection(), sequence_length=64, model=model(10**6))

    train = read("a.jsonl", ("me", "you"), ("what", "where"))
    (found,) = check_duplicates(train, read("b.jsonl", ("me", "where"), ("what", "where")))
    assert "1 of 2 examples are in finetune.train as well: b.jsonl:2 = a.jsonl:2. " in found.text
