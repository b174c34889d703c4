"""Rows of files as prompt and response. No torch: the launcher finds mistakes in them before a job is queued.

Four shapes of a row are known by their fields: prompt and response (under names that can be chosen), `messages` as
OpenAI writes them, `conversations` as ShareGPT does, and instruction, input and output as Alpaca does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.data.examples.assistant_turns import Span, render_dialogue
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.conversation import SHAREGPT_FIELD, conversation, conversation_field, tools_of
from megatrain.data.examples.example_rows import field_of, names_of
from megatrain.tasks.sft.section import SFTSection

# https://github.com/tatsu-lab/stanford_alpaca, README: the prompt that the data was made for
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
_ALPACA = (f"{_TASK}. {_REQUEST}", "{instruction}", "\n\n### Response:\n")
_ALPACA_WITH_INPUT = (
    f"{_TASK}, paired with an input that provides further context. {_REQUEST}",
    *("{instruction}", "\n\n### Input:\n", "{input}", "\n\n### Response:\n"),
)


class Pair(NamedTuple):
    where: str  # file and line
    prompt: str
    response: str
    templated: bool = False  # by a chat template, which writes BOS and the end of a turn itself
    spans: tuple[Span, ...] | None = None  # characters of prompt + response that are learnt, where not the response
    marked: bool = False  # by the template: nothing is added to them


@dataclass(frozen=True, slots=True)
class PairReader:
    """Turns rows into pairs; `template` is the tokenizer's, for messages."""

    section: SFTSection
    template: ChatTemplate | None
    templates_known: bool = True  # False: where there is no tokenizer yet, messages are not rendered

    def pair(self, where: str, row: Mapping[str, Any]) -> Pair:
        """Raises DataError, naming place and field, where the row has none of the three shapes."""
        section = self.section
        prompt, response = (field_of(row, name) for name in (section.prompt_field, section.response_field))
        chosen = (section.prompt_field, section.response_field) != ("prompt", "response")
        by_name = (prompt is None or response is None) and not chosen
        if by_name and (field := conversation_field(row, section.messages_field)) is not None:
            return self._messages(where, field, row)
        if section.system_prompt is not None:
            raise DataError(f"{where}: task.system_prompt is for dialogues; the row has {names_of(row)}")
        if by_name and row.get("instruction") is not None and row.get("output") is not None:
            return _alpaca(where, row)
        for name, value in ((section.prompt_field, prompt), (section.response_field, response)):
            if not isinstance(value, str):
                raise DataError(
                    f"{where}: {name}: is not there as text; the row has {names_of(row)}. "
                    "task.prompt_field and task.response_field name the fields to read"
                )
        return checked(Pair(where, prompt, response), section.prompt_field, section.response_field)

    def _messages(self, where: str, field: str, row: Mapping[str, Any]) -> Pair:
        system = row.get("system") if field == SHAREGPT_FIELD else None
        messages = conversation(f"{where}: {field}", field_of(row, field), system=system or self.section.system_prompt)
        if self.template is None and not self.templates_known:
            return Pair(where, "", "unknown", templated=True)
        if self.template is None:
            raise DataError(
                f"{where}: {field}: the tokenizer has no chat template (chat_template.jinja beside it, or "
                "chat_template in tokenizer_config.json); add one, or write prompt and response"
            )
        if self.section.special_tokens == "text":
            raise DataError(f"{where}: {field}: a chat template needs task.special_tokens: parse")
        tools = tools_of(where, row)
        try:
            if self.section.train_on == "last_turn":
                if messages[-1].get("weight") == 0:
                    raise DataError("the last message has weight 0: nothing to learn")
                prompt, response = self.template.pair(messages, tools=tools)
                return checked(Pair(where, prompt, response, templated=True), field, field)
            found = render_dialogue(self.template, messages, tools=tools)
        except DataError as error:
            raise DataError(f"{where}: {field}: {error}") from None
        begin = found.spans[0][0]
        prompt, response = found.text[:begin], found.text[begin:]
        pair = Pair(where, prompt, response, templated=True, spans=found.spans, marked=found.marked)
        return checked(pair, field, field)


def _alpaca(where: str, row: Mapping[str, Any]) -> Pair:
    for name in ("instruction", "input", "output"):
        if not isinstance(row.get(name) or "", str):
            raise DataError(f"{where}: {name}: must be text")
    parts = _ALPACA_WITH_INPUT if row.get("input") else _ALPACA
    prompt = "".join(row[part[1:-1]] if part in ("{instruction}", "{input}") else part for part in parts)
    return checked(Pair(where, prompt, row["output"]), "instruction", "output")


def checked(pair: Pair, prompt_field: str, response_field: str) -> Pair:
    """The pair. Raises DataError where a text is not Unicode, or the response is empty."""
    for name, text in ((prompt_field, pair.prompt), (response_field, pair.response)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{pair.where}: {name}: half a surrogate pair at character {error.start}: not Unicode"
            ) from None
    if not pair.response:
        raise DataError(f"{pair.where}: {response_field}: is empty: nothing to learn; leave the line out")
    return pair
