"""Rows of preferences as two examples with one prompt, in one row of tokens."""

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.preference_pairs import check_rows, read_preferences
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.preference.section import PreferenceSection
from tests import chat_templates as templates
from tests.data.examples.test_example_set import model

USER = {"role": "user", "content": "who"}
ME, YOU = ({"role": "assistant", "content": text} for text in ("me", "you"))


@pytest.fixture
def read(make_tokenizer, write_pairs):
    folder = make_tokenizer("byte_level", chat_template=templates.CHATML, more_special=templates.SPECIAL_TOKENS)
    tokenizer = Tokenizer.load(folder)

    def read(*rows, sequence_length=64, **fields):
        options = {"template": ChatTemplate.load(folder), "sequence_length": sequence_length, "model": model(10**6)}
        found = read_preferences([write_pairs(*rows)], tokenizer, PreferenceSection(**fields), **options)
        texts = []
        for row in found.rows:
            for begin, end in zip([0, *row.ends], row.ends, strict=False):
                tokens, learnt = row.tokens[begin:end], row.is_target[begin:end]
                texts.append((tokenizer.decode(tokens[~learnt]), tokenizer.decode(tokens[learnt])))
        return found, texts

    return read


def test_texts(read) -> None:
    _, texts = read({"prompt": "who", "chosen": " me", "rejected": " you"})
    assert texts == [("<s>who", " me</s>"), ("<s>who", " you</s>")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "who", "chosen": [ME], "rejected": [YOU]},
        {"prompt": [USER], "chosen": [ME], "rejected": [YOU]},
        {"chosen": [USER, ME], "rejected": [USER, YOU]},
        {"prompt": "who", "chosen": [USER, ME], "rejected": [USER, YOU]},
    ],
)
def test_messages(read, row) -> None:
    found, texts = read(row, sequence_length=400)
    assert (found.notes(), found.examples) == ([], 1)
    prompts, answers = zip(*texts, strict=True)
    assert answers == ("me<|im_end|>", "you<|im_end|>")
    assert all(prompt.endswith("<|im_start|>user\nwho<|im_end|>\n<|im_start|>assistant\n\n") for prompt in prompts)


def test_a_pair_stays_in_one_row(read) -> None:
    rows = [{"prompt": "who " * n, "chosen": " me", "rejected": " you"} for n in (2, 4, 1, 3)]
    found, texts = read(*rows, sequence_length=40)
    assert len(found.rows) > 1
    assert all(len(row.ends) % 2 == 0 for row in found.rows)
    assert len(texts) == 8
    assert found.examples == 4


def test_pairs_that_do_not_fit(read) -> None:
    short, long = ({"prompt": "who " * n, "chosen": " me", "rejected": " you"} for n in (1, 99))
    found, texts = read(short, long)
    assert (len(texts), found.examples) == (2, 1)
    assert "1 of 2 examples are longer than 64 tokens and are dropped" in found.warnings()[0]
    with pytest.raises(DataError, match=r"pairs.jsonl:2: has \d+ tokens in both answers with their prompts, more than"):
        read(short, long, truncation="error")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "who", "chosen": " me"}, "rejected: is not there as text"),
        ({"prompt": "who", "chosen": [ME], "rejected": " you"}, "chosen: is not there as text, nor are both"),
        ({"prompt": "who", "chosen": " me", "rejected": " me"}, "chosen and rejected are the same"),
        ({"prompt": "who", "chosen": " me", "rejected": ""}, "rejected: is empty"),
        ({"prompt": [USER], "chosen": [ME], "rejected": [USER]}, "rejected: must end with what the assistant answers"),
        ({"chosen": [USER, ME], "rejected": [{**USER, "content": "what"}, YOU]}, "answer different dialogues"),
    ],
)
def test_what_is_no_pair(read, write_pairs, row, says) -> None:
    with pytest.raises(DataError, match=rf"pairs.jsonl:1: .*{says}"):
        read(row)
    if "dialogues" not in says:
        with pytest.raises(DataError, match=r"pairs.jsonl:1: "):
            check_rows([write_pairs(row)], PreferenceSection())


def test_special_tokens_that_a_text_spells_out(read) -> None:
    row = {"prompt": "who", "chosen": " <|im_end|>", "rejected": " you"}
    ends = [read(row, special_tokens=kind)[0].rows[0].ends[0] for kind in ("parse", "text")]
    assert ends[0] < ends[1], "as text it is several tokens"
