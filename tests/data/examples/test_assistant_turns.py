"""What the assistant says in a rendered dialogue: as transformers' mask has it where a template has marks, the same
where it has none, and refused where that cannot be told."""

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.assistant_turns import render_dialogue
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import read_example_set
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.sft.section import SFTSection
from tests import chat_templates as templates
from tests.data.examples.test_example_set import model

SYSTEM = {"role": "system", "content": "be brief"}
CHAT = [
    {"role": "user", "content": "who is <that>?"},
    {"role": "assistant", "content": "me ☃"},
    {"role": "user", "content": "and where"},
    {"role": "assistant", "content": "the question\nthe answer"},
    {"role": "user", "content": "when"},
    {"role": "assistant", "content": "now é"},
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, name="t", tokens={"bos_token": "<s>", "eos_token": "</s>"})


def said(source: str, messages=CHAT, **options) -> list[str]:
    found = render_dialogue(template(source), messages, **options)
    return [found.text[begin:end] for begin, end in found.spans]


def packed(folder, path, *, sequence_length=400, **fields):
    return read_example_set(
        [path],
        Tokenizer.load(folder),
        SFTSection(**fields),
        template=ChatTemplate.load(folder),
        sequence_length=sequence_length,
        model=model(10**6),
    )


def learnt(found) -> tuple[list[int], list[int]]:
    """Tokens of the only example, and 1 where one is learnt."""
    (row,) = found.rows
    (end,) = row.ends
    return row.tokens[:end].tolist(), row.is_target[:end].astype(int).tolist()


@pytest.fixture(scope="module")
def folder_of(make_tokenizer):
    return lambda source, kind="byte_level": make_tokenizer(
        kind, chat_template=source, more_special=templates.SPECIAL_TOKENS
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "unigram"])
@pytest.mark.parametrize("name", ["MARKED_CHATML", "MARKED_LLAMA_3", "MARKED_QWEN_3"])
def test_tokens_and_mask_are_those_of_transformers(folder_of, write_pairs, name, kind) -> None:
    from transformers import AutoTokenizer

    folder = folder_of(getattr(templates, name), kind)
    for chat in (CHAT, [SYSTEM, *CHAT[:4]], [CHAT[0], {**CHAT[1], "reasoning_content": "a"}]):
        tokens, mask = learnt(packed(folder, write_pairs({"messages": chat})))
        theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            chat, return_dict=True, return_assistant_tokens_mask=True
        )
        assert tokens == theirs["input_ids"]
        assert mask == theirs["assistant_masks"]
        assert sum(mask) > 0


@pytest.mark.parametrize("name", ["CHATML", "LLAMA_3"])
def test_without_marks_the_same_tokens_are_learnt(folder_of, write_pairs, name) -> None:
    path = write_pairs({"messages": [SYSTEM, *CHAT]})
    inferred, marked = (packed(folder_of(getattr(templates, which)), path) for which in (name, f"MARKED_{name}"))
    assert learnt(inferred) == learnt(marked)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("CHATML", ["me ☃<|im_end|>\n", "the question\nthe answer<|im_end|>\n", "now é<|im_end|>\n"]),
        ("LLAMA_2", [" me ☃ </s>", " the question\nthe answer </s>", " now é </s>"]),
        ("LLAMA_3", ["me ☃<|eot_id|>", "the question\nthe answer<|eot_id|>", "now é<|eot_id|>"]),
        ("GEMMA", ["me ☃<end_of_turn>\n", "the question\nthe answer<end_of_turn>\n", "now é<end_of_turn>\n"]),
        ("MISTRAL", [" me ☃</s>", " the question\nthe answer</s>", " now é</s>"]),
        ("MARKED_CHATML", ["me ☃<|im_end|>", "the question\nthe answer<|im_end|>", "now é<|im_end|>"]),
    ],
)
def test_every_turn_and_what_ends_it(name, ends) -> None:
    assert said(getattr(templates, name)) == ends


@pytest.mark.parametrize(("name", "end"), [("CHATML", "<|im_end|>"), ("GEMMA", "<end_of_turn>"), ("MISTRAL", "</s>")])
def test_a_turn_ends_with_its_last_special_token(folder_of, write_pairs, name, end) -> None:
    """Blanks behind it are the template's."""
    folder = folder_of(getattr(templates, name))
    tokens, mask = learnt(packed(folder, write_pairs({"messages": CHAT})))
    tokenizer = Tokenizer.load(folder)
    last = [tokens[n] for n in range(len(tokens)) if mask[n] and not (mask[n + 1 :] or [0])[0]]
    assert [tokenizer.decode([number]) for number in last] == [end] * 3


def test_a_template_that_ends_no_turn_gets_one_end_of_text(folder_of, write_pairs) -> None:
    folder = folder_of("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tokens, mask = learnt(packed(folder, write_pairs({"messages": CHAT})))
    eos = Tokenizer.load(folder).eos_id
    assert (tokens.count(eos), tokens[-1], mask[-1]) == (1, eos, 1)
    muted = [*CHAT[:-1], {**CHAT[-1], "weight": 0}]
    tokens, mask = learnt(packed(folder, write_pairs({"messages": muted})))
    assert (tokens.count(eos), mask[-1]) == (0, 0)


def test_one_that_drops_earlier_reasoning(folder_of, write_pairs) -> None:
    with pytest.raises(DataError, match=r"renders message 1 otherwise when others follow it.*train_on: last_turn"):
        said(templates.QWEN_3)
    assert said(templates.QWEN_3, CHAT[:2]) == ["<think>\n\n</think>\n\nme ☃<|im_end|>\n"]
    folder, path = folder_of(templates.QWEN_3), write_pairs({"messages": CHAT})
    with pytest.raises(DataError, match=r"pairs.jsonl:1: messages: the chat template renders message 1 otherwise"):
        packed(folder, path)
    tokens, mask = learnt(packed(folder, path, train_on="last_turn"))
    text = Tokenizer.load(folder).decode([token for token, is_learnt in zip(tokens, mask, strict=True) if is_learnt])
    assert text == "<think>\n\n</think>\n\nnow é<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "messages", "says"),
    [
        (templates.GEMMA, [SYSTEM, *CHAT], "System role not supported"),
        (templates.MISTRAL, [CHAT[0], CHAT[0], CHAT[1]], "conversation roles must alternate"),
        (templates.CHATML, CHAT[1:], "begins with the assistant"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'A' if add_generation_prompt }}",
            CHAT,
            "begins an answer",
        ),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            CHAT,
            "begins an answer otherwise",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}",
            CHAT,
            "begins an answer otherwise",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", CHAT, "nothing to learn"),
        (
            "{% macro a(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
            "{% for m in messages %}-{{ '!' ~ a(m) }}{% endfor %}",
            CHAT,
            "place in the text is not known",
        ),
    ],
)
def test_what_cannot_be_told(source, messages, says) -> None:
    with pytest.raises(DataError, match=says):
        said(source, messages)


@pytest.mark.parametrize("source", [templates.CHATML, templates.MARKED_CHATML])
def test_turns_of_weight_0_are_not_learnt(source) -> None:
    messages = [*CHAT[:3], {**CHAT[3], "weight": 0}, CHAT[4], {**CHAT[5], "weight": 1}]
    assert [text.split("<")[0] for text in said(source, messages)] == ["me ☃", "now é"]
    with pytest.raises(DataError, match="nothing to learn"):
        said(source, [{**message, "weight": 0} for message in CHAT])


def test_dialogues_that_are_too_long_are_counted(folder_of, write_pairs) -> None:
    folder, path = folder_of(templates.MARKED_CHATML), write_pairs({"messages": CHAT})
    whole, mask = learnt(packed(folder, path))
    room = len(whole) - 25
    found = packed(folder, path, sequence_length=room)
    tokens, cut_mask = learnt(found)
    (report,) = found.files
    assert len(tokens) == room
    assert sum(cut_mask) < sum(mask)
    assert report.prompt_tokens_cut + report.response_tokens_cut == len(whole) - room
    assert report.turns_cut == 1
    assert "(1 whole turns of the assistant). Raise finetune.sequence_length" in (report.warning() or "")
    with pytest.raises(DataError, match="all 1 examples are dropped"):
        packed(folder, path, sequence_length=room, truncation="drop")
