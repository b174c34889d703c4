"""Rows of files, whatever a row becomes: where they are found, and what is wrong with them, told at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from megatrain.base.errors import DataError
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.rows import Row, read_rows

SHOWN_MISTAKES = 10

T = TypeVar("T")
ReadRow = Callable[[str, Mapping[str, Any]], T]  # (file and line, fields) -> what it is; raises DataError


class TooManyMistakesError(DataError):
    """Reading ended early."""


class Mistakes:
    """What is wrong with some examples, told at once; after so many, reading ends."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, error: DataError) -> None:
        """Raises TooManyMistakesError, with all of them, when there are."""
        self._texts += str(error).splitlines()
        if len(self._texts) >= SHOWN_MISTAKES:
            raise TooManyMistakesError(
                "\n".join([*self._texts, f"and perhaps more: reading ended at {SHOWN_MISTAKES}"])
            )

    def add_empty(self, path: str) -> None:
        """A file of which nothing was read; where its rows were mistakes, they say more."""
        if not any(text.startswith(path) for text in self._texts):
            self.add(DataError(f"{path}: holds no examples; write an object per line"))

    def demand_none(self) -> None:
        """Raises DataError when there is one."""
        if self._texts:
            raise DataError("\n".join(self._texts))


def usable(rows: Iterator[Row], read: ReadRow[T], mistakes: Mistakes) -> Iterator[T]:
    """What the rows are; what is wrong with the others, or with their file, is a mistake."""
    try:
        for row in rows:
            try:
                found = read(row.where, row.fields)
            except DataError as error:
                mistakes.add(error)
            else:
                yield found
    except TooManyMistakesError:
        raise
    except DataError as error:
        mistakes.add(error)


def all_usable(paths: Sequence[str], read: ReadRow[T]) -> Iterator[T]:
    """What the rows of files, folders and glob patterns are, in their order.

    Raises:
        DataError: at the end, or once there are many: rows are unusable; names file and line of each.
    """
    mistakes = Mistakes()
    for file in find_inputs(paths).inputs:
        rows = 0
        for found in usable(read_rows(file), read, mistakes):
            rows += 1
            yield found
        if not rows:
            mistakes.add_empty(str(file))
    mistakes.demand_none()


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """A field by its name, or by a path of names with dots: `data.question`. None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def names_of(row: Mapping[str, Any]) -> str:
    names = [str(name) for name in row]
    return (", ".join(names[:8]) + (", …" if len(names) > 8 else "")) or "no fields"
