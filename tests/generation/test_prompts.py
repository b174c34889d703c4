"""What a model is given to continue, and where what it says ends."""

import pytest

from megatrain.base.errors import ConfigError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.generation.prompts import Ending, Prompts
from tests.tokenizer_kinds import CHAT_TEMPLATE, KINDS

SAID = [{"role": "user", "content": "who what"}]


def prompts_of(folder, *, chat: bool = True, special_tokens="parse", rows: int = 10_000) -> Prompts:
    template = ChatTemplate(CHAT_TEMPLATE, name="t", tokens={"bos_token": "<s>"}) if chat else None
    return Prompts(Tokenizer.load(folder), template=template, special_tokens=special_tokens, rows=rows)


def test_a_prompt_is_encoded_as_transformers_does(make_tokenizer) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer("byte_level")
    theirs = AutoTokenizer.from_pretrained(folder)
    prompt = "<|im_start|>who what"
    assert prompts_of(folder).text(prompt) == theirs(prompt)["input_ids"]
    assert prompts_of(folder).prefix == theirs("")["input_ids"]
    assert len(prompts_of(folder, special_tokens="text").text(prompt)) > len(theirs(prompt)["input_ids"])
    assert prompts_of(folder).text("") == theirs("")["input_ids"]


def test_a_conversation_is_what_transformers_makes_of_it(make_tokenizer) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer("byte_level")
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = CHAT_TEMPLATE
    expected = theirs.apply_chat_template(SAID, add_generation_prompt=True, return_dict=False)
    assert prompts_of(folder).conversation(SAID) == expected
    assert prompts_of(folder, special_tokens="text").conversation(SAID) == expected


def test_an_empty_prompt_begins_behind_an_end_of_text(make_tokenizer) -> None:
    folder = make_tokenizer("byte_level", front="")
    assert prompts_of(folder).text("") == [Tokenizer.load(folder).eos_id]


def test_a_turn_ends_where_the_template_ends_it(make_tokenizer) -> None:
    folder = make_tokenizer("byte_level")
    tokenizer, prompts = Tokenizer.load(folder), prompts_of(folder)
    turn = prompts.templated("<|im_end|>")
    assert prompts.ends(of_turns=False) == {tokenizer.eos_id}
    assert prompts.ends(of_turns=True) == {tokenizer.eos_id, *turn}


def test_what_cannot_be_a_prompt_is_named(make_tokenizer) -> None:
    folder = make_tokenizer("byte_level")
    with pytest.raises(ConfigError, match=r"a\.jsonl:3: half a surrogate pair at character 1"):
        prompts_of(folder).text("a\udcff", "a.jsonl:3")
    with pytest.raises(ConfigError, match=r"PROMPT: holds the id \d+ of the tokenizer; the model's .* has 9 rows"):
        prompts_of(folder, rows=9).text("who")
    with pytest.raises(ConfigError, match="has no chat template"):
        prompts_of(folder, chat=False).conversation(SAID)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_what_stands_behind_the_prompt(make_tokenizer, kind) -> None:
    """With its space in front where the tokenizer has one, without what ends it."""
    tokenizer = Tokenizer.load(make_tokenizer(kind))
    whole = tokenizer.encode("who what where and the answer")
    before, made = whole[:3], whole[3:]
    ending = Ending(tokenizer, {tokenizer.eos_id})
    expected = tokenizer.decode(whole)[len(tokenizer.decode(before)) :]
    assert expected.endswith("answer")
    assert ending.text(before, [*made, tokenizer.eos_id, *made]) == expected
    assert not ending(made)
    assert ending([*made, tokenizer.eos_id])


def test_a_stop_ends_a_text_and_is_no_part_of_it(make_tokenizer) -> None:
    """Also where it begins within a token."""
    tokenizer = Tokenizer.load(make_tokenizer("byte_level"))
    made = tokenizer.encode(" where and the answer")
    ending = Ending(tokenizer, {tokenizer.eos_id}, ["zz", "d the", " answer"])
    lengths = [size for size in range(1, len(made) + 1) if ending(made[:size])]
    assert tokenizer.decode(made[: lengths[0]]).endswith(" the")
    assert ending.text(tokenizer.encode("who"), made[: lengths[0]]) == " where an"
