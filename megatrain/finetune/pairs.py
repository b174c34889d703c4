"""Prompt and response pairs of jsonl files. No torch: the launcher finds mistakes in them before a job is queued."""

import json
from collections.abc import Iterator
from pathlib import Path

from megatrain.errors import DataError


def read_pairs(path: Path, prompt_field: str, response_field: str) -> Iterator[tuple[str, str]]:
    """Every pair of a file, read as it is asked for.

    Raises:
        DataError: the file is missing or empty, or a line is not an object with both fields as text.
    """
    number = found = 0
    try:
        # lines end with \n only: JSON strings may hold U+2028 and other separators as they are
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found += 1
                    yield _pair(f"{path}:{number}", line, prompt_field, response_field)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number + 1}: is not UTF-8 text") from None
    if not found:
        raise DataError(f"{path}: holds no examples; write an object a line with {prompt_field} and {response_field}")


def _pair(where: str, line: str, prompt_field: str, response_field: str) -> tuple[str, str]:
    try:
        example = json.loads(line)
    except ValueError:
        raise DataError(f"{where}: is not JSON; write an object a line") from None
    for field in (prompt_field, response_field):
        if not isinstance(example, dict) or not isinstance(example.get(field), str):
            raise DataError(
                f"{where}: {field}: is not there as text. "
                "finetune.prompt_field and finetune.response_field name the fields to read"
            )
    if not example[response_field]:
        raise DataError(f"{where}: {response_field}: is empty: nothing to learn; leave the line out")
    return example[prompt_field], example[response_field]
