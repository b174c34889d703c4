"""Dialogues of rows as messages that a chat template takes: as OpenAI writes them, and as ShareGPT does."""

import json
from collections.abc import Mapping
from typing import Any

from megatrain.base.errors import DataError
from megatrain.data.examples.example_rows import field_of

SHAREGPT_FIELD = "conversations"

# Names of ShareGPT and of the data sets in its shape -> roles of chat templates
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

_REASONING = ("reasoning_content", "thinking", "reasoning")


def conversation_field(row: Mapping[str, Any], messages_field: str) -> str | None:
    """The field of a row that holds a dialogue, or None."""
    return next((name for name in (messages_field, SHAREGPT_FIELD) if field_of(row, name) is not None), None)


def conversation(where: str, value: object, *, system: object = None) -> list[dict[str, Any]]:
    """Messages with role and content, ending with the assistant's.

    A content of text parts becomes their text; arguments of calls that are JSON become what it stands for, as chat
    templates write them again.

    Args:
        where: file, line and field, for messages.
        system: goes in front of a dialogue that has no system message.

    Raises:
        DataError: it is no dialogue, or does not end with what the assistant says to a message before it.
    """
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(
            f"{where}: must be a list of messages, each an object with role and content (or from and value)"
        )
    found = [_message(f"{where}.{number}", message) for number, message in enumerate(value)]
    if len(found) < 2 or found[-1]["role"] != "assistant":
        raise DataError(f"{where}: must end with what the assistant answers to a message before it")
    if isinstance(system, str) and system and found[0]["role"] != "system":
        found.insert(0, {"role": "system", "content": system})
    return found


def tools_of(where: str, row: Mapping[str, Any]) -> object:
    """What a row offers to the assistant; tables hold it as JSON."""
    tools = row.get("tools")
    if not isinstance(tools, str):
        return tools
    if not tools.strip():
        return None
    try:
        return json.loads(tools)
    except ValueError:
        raise DataError(f"{where}: tools: is text, but not JSON") from None


def _message(where: str, message: dict[str, Any]) -> dict[str, Any]:
    if "role" not in message and "from" in message:
        return _sharegpt(where, message)
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where}.role: must be text, such as user or assistant")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"{where}.content: must be text; nothing else can be read here")
    if message.get("weight") not in (None, 0, 1):
        raise DataError(f"{where}.weight: {message['weight']!r:.40}: must be 0 (not learnt) or 1")
    found = {**message, "content": content}
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is not None:  # as transformers names it to templates
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    if isinstance(message.get("tool_calls"), list):
        found["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return found


def _sharegpt(where: str, message: dict[str, Any]) -> dict[str, Any]:
    name, value = message["from"], message.get("value")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{where}.from: {name!r:.40}: must be one of {', '.join(_ROLES)}")
    if not isinstance(value, str):
        raise DataError(f"{where}.value: must be text; nothing else can be read here")
    found: dict[str, Any] = {"role": role, "content": value}
    if message.get("weight") is not None:
        found["weight"] = message["weight"]
    if name == "function_call":
        try:
            calls = json.loads(value)
        except ValueError:
            raise DataError(f"{where}.value: must be the call as JSON, with name and arguments") from None
        calls = calls if isinstance(calls, list) else [calls]
        found |= {"content": None, "tool_calls": [{"type": "function", "function": call} for call in calls]}
    return found


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
