"""Which part of an example's text is the row's own, and which a template put around it."""

import re
from collections.abc import Mapping
from typing import Any

from megatrain.base.errors import DataError
from megatrain.data.examples.prompt_completion import Pair, PairReader

_NOT_TEXT = frozenset(("role", "from", "type", "id", "weight"))  # what templates read, and do not show as it is
_PLACE = re.compile("\ue000([0-9]+)\ue001")  # private characters: no text of a row has them


def own_text(reader: PairReader, pair: Pair, row: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """The characters of prompt + response that are the row's own: of each part the first, and behind the last.

    The row is rendered again with a place in each of its texts; what then stands around the places is the template's.
    None where the template does more with a text than to put it somewhere.
    """
    texts: list[str] = []
    try:
        found = reader.pair(pair.where, {name: _with_places(value, name, texts) for name, value in row.items()})
    except DataError:
        return None
    text, at = pair.prompt + pair.response, 0
    parts: list[tuple[int, int]] = []
    pieces = _PLACE.split(found.prompt + found.response)
    for literal, number in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        if not text.startswith(literal, at):
            return None
        at += len(literal)
        if number is None:
            break
        own = next((one for one in _forms(texts[int(number)]) if text.startswith(one, at)), None)
        if own is None:
            return None
        parts.append((at, at + len(own)))
        at += len(own)
    return parts if at == len(text) else None


def _forms(text: str) -> tuple[str, ...]:
    """As it is, and without the blanks around it, as many templates have it."""
    return text, text.lstrip(), text.rstrip(), text.strip()


def _with_places(value: Any, name: str, texts: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_places(one, key, texts) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_places(one, name, texts) for one in value]
    if not isinstance(value, str) or not value or name in _NOT_TEXT:
        return value
    texts.append(value)
    return f"\ue000{len(texts) - 1}\ue001"
