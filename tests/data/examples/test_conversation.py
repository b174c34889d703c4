"""Dialogues as OpenAI and ShareGPT write them become the same messages."""

import json

import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.conversation import conversation, conversation_field, tools_of
from megatrain.data.examples.prompt_completion import PairReader
from megatrain.tasks.sft.section import SFTSection
from tests.chat_templates import CHATML
from tests.data.examples.test_assistant_turns import template

OPENAI = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what time"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
    },
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "noon"},
]
SHAREGPT = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "what time"},
    {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "UTC"}}'},
    {"from": "observation", "value": "12:00"},
    {"from": "gpt", "value": "noon"},
]


def test_both_shapes_are_the_same_messages() -> None:
    assert conversation("a:1", SHAREGPT) == conversation("a:1", OPENAI) == OPENAI


def test_arguments_as_openai_writes_them() -> None:
    """As JSON text; chat templates take an object."""
    written = json.loads(json.dumps(OPENAI))
    written[2]["tool_calls"][0]["function"]["arguments"] = '{"zone": "UTC"}'
    assert conversation("a:1", written) == OPENAI


def test_a_system_prompt_goes_where_there_is_none() -> None:
    assert conversation("a:1", OPENAI[1:], system="be brief") == OPENAI
    assert conversation("a:1", OPENAI, system="be long") == OPENAI


def test_which_field_holds_it() -> None:
    assert conversation_field({"conversations": SHAREGPT}, "messages") == "conversations"
    assert conversation_field({"conversations": SHAREGPT, "messages": OPENAI}, "messages") == "messages"
    assert conversation_field({"data": {"chat": OPENAI}}, "data.chat") == "data.chat"
    assert conversation_field({"text": "a"}, "messages") is None


def test_tools_of_a_table_are_json() -> None:
    assert tools_of("a:1", {"tools": '[{"name": "f"}]'}) == [{"name": "f"}]
    assert tools_of("a:1", {"tools": " "}) is tools_of("a:1", {}) is None
    with pytest.raises(DataError, match="a:1: tools: is text, but not JSON"):
        tools_of("a:1", {"tools": "f()"})


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"from": "alien", "value": "x"}, SHAREGPT[-1]], r"a:1.0.from: 'alien': must be one of human"),
        ([{"from": "human"}, SHAREGPT[-1]], r"a:1.0.value: must be text"),
        ([{"from": "human", "value": "a"}, {"from": "function_call", "value": "f()"}], r"a:1.1.value: .*as JSON"),
        ([OPENAI[1], {**OPENAI[-1], "weight": 2}], r"a:1.1.weight: 2: must be 0"),
        (SHAREGPT[:2], "must end with what the assistant answers"),
    ],
)
def test_what_is_no_dialogue(messages, says) -> None:
    with pytest.raises(DataError, match=says):
        conversation("a:1", messages)


class TestRows:
    """Of `PairReader`."""

    def text(self, row, **fields) -> str:
        pair = PairReader(SFTSection(**fields), template(CHATML)).pair("a:1", row)
        return pair.prompt + pair.response

    def test_sharegpt(self) -> None:
        row = {"conversations": [SHAREGPT[1], SHAREGPT[-1]], "system": "be brief"}
        expected = "system\nbe brief<|im_end|>\n<|im_start|>user\nwhat time<|im_end|>\n<|im_start|>assistant\nnoon"
        assert expected in self.text(row)
        assert expected in self.text(row, system_prompt="be long")

    def test_the_configured_system_prompt(self) -> None:
        row = {"messages": [OPENAI[1], OPENAI[-1]]}
        assert "system\nbe long<|im_end|>" in self.text(row, system_prompt="be long")
        for other in ({"prompt": "a", "response": "b"}, {"instruction": "a", "output": "b"}):
            with pytest.raises(DataError, match=r"a:1: task.system_prompt is for dialogues; the row has"):
                self.text(other, system_prompt="be long")

    def test_a_last_turn_of_weight_0(self) -> None:
        with pytest.raises(DataError, match="a:1: messages: the last message has weight 0"):
            self.text({"messages": [OPENAI[1], {**OPENAI[-1], "weight": 0}]}, train_on="last_turn")
