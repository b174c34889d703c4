"""Rows of rated answers as examples, and beside them each answer behind another prompt."""

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.packing import Example
from megatrain.data.examples.rated_answers import check_rows_of_loss, mismatched, packed_beside, read_rated
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.preference.section import PreferenceSection
from tests import chat_templates as templates
from tests.data.examples.test_example_set import model

UNPAIRED = [
    {"prompt": "who", "completion": " me", "label": True},
    {"prompt": "what", "completion": " it is", "label": False},
    {"prompt": "where", "completion": " in it", "label": 1},
]
PAIRED = [
    {"prompt": "who", "chosen": " me", "rejected": " you"},
    {"prompt": "what", "chosen": " it", "rejected": " is"},
]


@pytest.fixture
def read(make_tokenizer, write_pairs):
    folder = make_tokenizer("byte_level", chat_template=templates.CHATML, more_special=templates.SPECIAL_TOKENS)
    tokenizer = Tokenizer.load(folder)

    def texts(rows):
        found = []
        for row in rows:
            for begin, end in zip([0, *row.ends], row.ends, strict=False):
                tokens, learnt = row.tokens[begin:end], row.is_target[begin:end]
                found.append((tokenizer.decode(tokens[~learnt]), tokenizer.decode(tokens[learnt])))
        return found

    def read(*rows, sequence_length=64, **fields):
        section = PreferenceSection(loss="kto", **fields)
        options = {"template": ChatTemplate.load(folder), "sequence_length": sequence_length, "model": model(10**6)}
        found = read_rated([write_pairs(*rows)], tokenizer, section, **options)
        return found, texts(found.rows), texts(found.beside), np.concatenate([row.values[:, 0] for row in found.rows])

    return read


def test_unpaired_rows(read) -> None:
    found, texts, beside, ratings = read(*UNPAIRED)
    assert texts == [("<s>who", " me</s>"), ("<s>what", " it is</s>"), ("<s>where", " in it</s>")]
    assert beside == [("<s>who", " in it</s>"), ("<s>what", " me</s>"), ("<s>where", " it is</s>")]
    assert (ratings.tolist(), found.examples, found.desirable) == ([1, 0, 1], 3, 2)
    assert found.notes()[0].startswith("2 answers are desirable, 1 are not")


def test_a_pair_is_two_answers_and_neither_stands_in_for_the_other(read) -> None:
    found, texts, beside, ratings = read(*PAIRED)
    assert texts == [("<s>who", " me</s>"), ("<s>who", " you</s>"), ("<s>what", " it</s>"), ("<s>what", " is</s>")]
    assert [prompt for prompt, _ in beside] == [prompt for prompt, _ in texts]
    assert [answer for _, answer in beside] == [" is</s>", " is</s>", " you</s>", " you</s>"]
    assert (ratings.tolist(), found.examples) == ([1, 0, 1, 0], 4)


def test_messages(read) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "completion": [{"role": "assistant", "content": "me"}],
            "label": 0,
        }
        for text in ("who", "what")
    ]
    _, texts, _, _ = read(*rows, sequence_length=400)
    assert [answer for _, answer in texts] == ["me<|im_end|>"] * 2
    assert texts[0][0].endswith("<|im_start|>user\nwho<|im_end|>\n<|im_start|>assistant\n\n")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "who", "completion": " me"}, "label: must be true or false: whether completion is desirable"),
        ({"prompt": "who", "completion": " me", "label": "yes"}, "label: must be true or false"),
        ({"prompt": "who", "label": True}, "completion: is not there as text, nor is the answer messages"),
        ({"prompt": "who", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
    ],
)
def test_what_is_wrong_is_named(read, write_pairs, row, message) -> None:
    with pytest.raises(DataError, match=f":4: {message}"):
        read(*UNPAIRED, row)
    with pytest.raises(DataError, match=f":1: {message}"):
        check_rows_of_loss([write_pairs(row)], PreferenceSection(loss="kto"))


def test_one_prompt_is_not_enough(read) -> None:
    with pytest.raises(DataError, match="all answers are to one prompt"):
        read(*[UNPAIRED[0]] * 3)
    assert read(UNPAIRED[0])[0].beside == [], "data preview reads row by row"


def test_long_answers_are_dropped_and_counted(read) -> None:
    long = {"prompt": "who", "completion": " it" * 40, "label": False}
    found, texts, _, _ = read(*UNPAIRED, long, sequence_length=24)
    assert (len(texts), found.examples, found.files[0].dropped) == (3, 3, 1)
    with pytest.raises(DataError, match=r"more than finetune\.sequence_length"):
        read(*UNPAIRED, long, sequence_length=24, truncation="error")


def example(prompt: int, length: int) -> Example:
    return Example(np.array([prompt] * 3 + [9] * (length - 3), dtype=np.int32), 3)


def test_rows_and_what_lies_beside_them_hold_the_same_answers() -> None:
    examples = [example(n // 2, 4 + 3 * n % 7) for n in range(9)]
    others = mismatched(examples, 8)
    assert all(one.tokens[0] == n // 2 and len(one.tokens) <= 8 for n, one in enumerate(others))
    rows, beside = packed_beside(examples, others, 20, 0)
    assert [len(row.ends) for row in rows] == [len(row.ends) for row in beside]
    assert sum(len(row.ends) for row in rows) == 9
    assert max(int(row.ends[-1]) for row in (*rows, *beside)) <= 20
