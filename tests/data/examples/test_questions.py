"""Questions and contexts as windows: what transformers' tokenizer makes of them, answers where SQuAD says they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.loader import batch_of
from megatrain.data.examples.questions import QuestionSet, check_rows, context_offsets, read_questions
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.question_answering.section import QuestionAnsweringSection
from megatrain.tasks.question_answering.spans import FIELDS
from tests.data.examples.test_classification import BERT

CONTEXT = "the question who what the answer to the question is that " * 4
QUESTION = "what answer"


def row(text: str = "answer to", at: int | None = None, **fields: Any) -> dict[str, Any]:
    start = CONTEXT.index(text) if at is None else at
    return {"question": QUESTION, "context": CONTEXT, "answers": {"text": [text], "answer_start": [start]}} | fields


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def read(path: str, tokenizer: Tokenizer, *, sequence_length: int, **fields: Any) -> QuestionSet:
    section = QuestionAnsweringSection(**fields)
    return read_questions([path], tokenizer, section, sequence_length=sequence_length, model=BERT)


@pytest.mark.parametrize("kind", ["byte_level", "wordpiece"])
def test_windows_are_those_of_transformers(tmp_path, make_tokenizer, kind) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer(kind, front="<s> ", behind=" </s>")
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    expected = theirs(
        QUESTION, CONTEXT, truncation="only_second", max_length=32, stride=5, return_overflowing_tokens=True
    )["input_ids"]
    second = CONTEXT.index("answer to", 100)
    found = read(write(tmp_path / "rows.jsonl", row(at=second)), tokenizer, sequence_length=32, stride=5)
    assert [one.tokens[: one.ends[-1]].tolist() for one in found.rows] == expected
    assert len(expected) > 1
    offsets = context_offsets(tokenizer, [CONTEXT])[0]
    held = 0
    for one, window in zip(found.rows, found.windows, strict=True):
        assert one.values is not None
        values = dict(zip(FIELDS, one.values[0].astype(int).tolist(), strict=True))
        assert (values["length"], window.question) == (one.ends[0], 0)
        shown = offsets[values["context"] + window.shift], offsets[values["behind"] - 1 + window.shift]
        if shown[0][0] <= second and second + len("answer to") <= shown[1][1]:
            begin, end = offsets[values["start"] + window.shift][0], offsets[values["end"] + window.shift][1]
            assert CONTEXT[begin:end].strip() == "answer to"
            held += 1
        else:
            assert (values["start"], values["end"]) == (0, 0)
    assert held


def test_short_ones_share_a_row_and_lists_of_answers_are_read(tmp_path, make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("wordpiece"))
    answers = [{"text": "who", "answer_start": 4}, {"text": "what", "answer_start": 8}]
    short = {"question": "who", "context": "the who what", "answers": answers}
    none = {"question": "who", "context": "the question", "answers": {"text": [], "answer_start": []}}
    found = read(write(tmp_path / "rows.jsonl", short, none), tokenizer, sequence_length=64, unanswerable=True)
    (one,) = found.rows
    assert (one.targets, found.examples, len(one.ends)) == (2, 2, 2)
    assert [asked.answers for asked in found.asked] == [("who", "what"), ()]
    batch = batch_of([one, one])
    assert batch.example_targets is not None
    assert batch.example_targets.shape == (4, len(FIELDS))
    assert batch.labels[batch.labels >= 0].tolist() == [0, 1, 2, 3]


def test_an_answer_longer_than_a_window_is_told(tmp_path, make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
    path = write(tmp_path / "rows.jsonl", row(CONTEXT[:200]))
    found = read(path, tokenizer, sequence_length=32, stride=4)
    assert found.warnings() == ["1 answers are longer than a window and are not learnt: raise finetune.sequence_length"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"question": ""}, "question: is not there as text"),
        ({"answers": None}, "answers: is not there as {text: […], answer_start: […]}"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "answers: is not there as {text: […], answer_start: […]}"),
        (
            {"answers": {"text": ["who"], "answer_start": [5]}},
            "answers: 'who' is not at character 5 of the context, where 'uestion' stands".replace("uestion", "ues"),
        ),
        ({"answers": []}, "answers: holds no answer. Where that is meant, set task.unanswerable: true"),
    ],
)
def test_rows_that_cannot_be_learnt_from(tmp_path, fields, said) -> None:
    path = write(tmp_path / "rows.jsonl", row(), row(**fields))
    with pytest.raises(DataError) as caught:
        check_rows([path], QuestionAnsweringSection())
    assert str(caught.value).startswith(f"{path}:2: {said}")


def test_a_question_that_leaves_no_room(tmp_path, make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
    path = write(tmp_path / "rows.jsonl", row())
    with pytest.raises(DataError, match=r"rows.jsonl:1: the question has \d+ tokens, which leaves \d+ of finetune"):
        read(path, tokenizer, sequence_length=32, stride=31)
