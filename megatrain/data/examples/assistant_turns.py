"""What of a rendered dialogue the assistant says: by the template's own marks, else by what it renders of the parts.

`{% generation %}` marks it for transformers, too, and the marks count as they are. Without them, a template is
understood where each message only adds text: the dialogue up to an answer, with the beginning of an answer behind it,
and the dialogue up to the answer's end must both be how the whole begins. Whatever else a template does is refused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate

Span = tuple[int, int]  # characters: the first, and behind the last


class RenderedDialogue(NamedTuple):
    text: str
    spans: tuple[Span, ...]  # what is learnt of it, in its order
    marked: bool  # by the template itself


def render_dialogue(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], *, tools: object = None
) -> RenderedDialogue:
    """The text of a dialogue, and every turn of the assistant in it, but those of weight 0.

    Raises:
        DataError: the template refuses the messages; or what the assistant says in its text cannot be told; or that is
            nothing.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    weights = [messages[number].get("weight", 1) != 0 for number in turns]
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    if template.has_marks:
        text, spans = template.render_marked(messages, tools=tools)
        if len(spans) != len(turns) and not all(weights):
            raise DataError(
                f"the template marks {len(spans)} parts of {len(turns)} turns of the assistant: which of them have "
                "weight 0 cannot be told"
            )
    else:
        text = template.render(messages, tools=tools)
        spans = [_inferred(template, text, messages, number, tools) for number in turns]
    if len(spans) == len(turns):
        spans = [span for span, counts in zip(spans, weights, strict=True) if counts]
    spans = [span for span in spans if span[1] > span[0]]
    if not spans:
        raise DataError("holds nothing to learn: no turn of the assistant has text and a weight other than 0")
    return RenderedDialogue(text, tuple(spans), template.has_marks)


def _inferred(
    template: ChatTemplate, text: str, messages: Sequence[dict[str, Any]], number: int, tools: object
) -> Span:
    if number == 0:
        raise DataError("begins with the assistant: what belongs to its turn cannot be told; add a message before it")
    before = template.render(messages[:number], tools=tools, add_generation_prompt=True)
    last = number == len(messages) - 1
    after = text if last else template.render(messages[: number + 1], tools=tools)
    if text.startswith(before) and text.startswith(after) and len(before) <= len(after):
        return len(before), len(after)
    what = (
        "begins an answer otherwise than it renders one"
        if not text.startswith(before)
        else f"renders message {number} otherwise when others follow it, as templates do that drop earlier reasoning"
    )
    raise DataError(
        f"the chat template {what}: what the assistant says in the text cannot be told. Set task.train_on: last_turn, "
        "or mark it with {% generation %} and {% endgeneration %} in the template"
    )
