"""Dialogues of `chatterbot-corpus` (PyPI) as messages: short questions and answers on some twenty topics."""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from megatrain.base.errors import DataError

Messages = list[dict[str, str]]


def dialogues(folder: Path) -> list[Messages]:
    """Of the package's `data/english`, each once, in the order of its files.

    Raises:
        DataError: there is none.
    """
    found = {json.dumps(messages): messages for file in sorted(folder.glob("*.yml")) for messages in _of_file(file)}
    if not found:
        raise DataError(f"{folder}: holds no dialogue, which would be in a .yml file under `conversations`")
    return list(found.values())


def _of_file(file: Path) -> Iterator[Messages]:
    """Who says the first line is the user; a last line of the user's has no answer, and is left out."""
    for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
        texts = [str(turn).strip() for turn in turns]
        texts = texts[: len(texts) // 2 * 2]
        if texts and all(texts):
            roles = ("user", "assistant")
            yield [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def write(found: list[Messages], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in found)
    file.write_text("".join(lines), encoding="utf-8")
    return file
