"""Prompts are encoded as transformers does it, whatever the kind of tokenizer."""

import json
import pickle

import pytest

from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.tokenizer import EncodeError, Tokenizer
from tests.tokenizer_kinds import KINDS

ENDS = [("<s> ", ""), ("<s> ", " </s>"), ("", ""), ("<|im_start|> <s> ", " <|im_end|>")]
PAIRS = [
    ("who what ", "where"),
    ("abc:", "def"),
    ("def(", "x) = [1, 22]"),
    ("", "and the answer"),
    ("the que", "stion"),
    ("<|im_start|>who<|im_end|>\n", "<|im_start|> the answer"),
    ("a\n", "\n\nb  c "),
    ("who ", " what"),
    ("question e", "\u0301t"),
    ("who 😀", "👍 what"),
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize(("front", "behind"), ENDS)
def test_as_transformers_encodes_the_whole_text(make_tokenizer, kind, front, behind) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer(kind, front=front, behind=behind)
    mine, theirs = PromptEncoder(Tokenizer.load(folder)), AutoTokenizer.from_pretrained(folder)
    for prompt, response in PAIRS:
        expected = theirs(prompt + response)["input_ids"]
        (encoded,) = mine.pairs([(prompt, response)])
        assert [*mine.prefix, *encoded.tokens, *mine.suffix] == expected
        if not prompt.startswith("<|im_start|>"):  # else what is in front is there already
            assert [*mine.prompt(prompt + response), *mine.suffix] == expected


def test_the_boundary_lies_where_the_response_begins(make_tokenizer, kind) -> None:
    """Every token of the prompt's part ends in the prompt, and the next one does not."""
    encoder = PromptEncoder(Tokenizer.load(make_tokenizer(kind)))
    for (prompt, response), encoded in zip(PAIRS, encoder.pairs(PAIRS), strict=True):
        library = encoder._library
        offsets = library.encode(prompt + response, add_special_tokens=False).offsets
        assert all(end <= len(prompt) for _, end in offsets[: encoded.prompt_tokens])
        assert offsets[encoded.prompt_tokens][1] > len(prompt)
    encoded = next(encoder.pairs([("and the answer to the question; ", "who")]))
    assert 0 < encoded.prompt_tokens < len(encoded.tokens)


@pytest.mark.parametrize(("add", "front"), [(True, ""), (False, "<s> ")])
def test_tokenizer_config_has_no_say(make_tokenizer, add, front) -> None:
    """Nor has it in transformers, where there is a tokenizer.json."""
    from transformers import AutoTokenizer

    folder = make_tokenizer("byte_level", front=front, add_bos_token=add, add_eos_token=add)
    encoder = PromptEncoder(Tokenizer.load(folder))
    assert encoder.prompt("who") == AutoTokenizer.from_pretrained(folder)("who")["input_ids"]


def test_what_is_in_front_already_is_not_put_there_again(make_tokenizer) -> None:
    encoder = PromptEncoder(Tokenizer.load(make_tokenizer("byte_level")))
    assert encoder.prompt("<s>who") == encoder.prompt("who")
    as_text = PromptEncoder(encoder.tokenizer, special_tokens="text")
    assert len(as_text.prompt("<s>who")) > len(encoder.prompt("who"))


def test_an_expression_that_gives_up_is_no_panic(make_tokenizer) -> None:
    folder = make_tokenizer("byte_level")
    written = json.loads((folder / "tokenizer.json").read_text())
    written["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    tokenizer = Tokenizer.load(folder)
    bad = "a" * 40 + "!"
    with pytest.raises(EncodeError, match=r"tokenizer.json: cannot encode the text 'aaaaa.*retry-limit") as caught:
        tokenizer.encode_batch(["who", bad])
    assert caught.value.number == 1
    assert pickle.loads(pickle.dumps(caught.value)).number == 1  # a worker process hands it back
    encoder = PromptEncoder(tokenizer)
    first, second, third = encoder.pairs([("who", " me"), (bad, " me"), ("who", " me")])
    assert isinstance(second, EncodeError)
    assert first.tokens.tolist() == third.tokens.tolist()
    with pytest.raises(EncodeError):
        encoder.prompt(bad)
