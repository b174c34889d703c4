"""Prompts from a file of rows. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatrain.base.errors import DataError
from megatrain.data.examples.example_rows import all_usable, names_of

_FIELD = "prompt"


def read_prompts(file: Path) -> list[tuple[str, str]]:
    """Of each row of a file of jsonl, csv, parquet or arrow: where it stands, and its prompt.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    return list(all_usable([str(file)], _prompt))


def _prompt(where: str, row: Mapping[str, Any]) -> tuple[str, str]:
    text = row.get(_FIELD)
    if not isinstance(text, str):
        raise DataError(f"{where}: {_FIELD}: is not there as text; the row has {names_of(row)}")
    return where, text
