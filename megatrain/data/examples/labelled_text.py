"""Rows of files as texts with a label, several, or a number. No torch: the launcher finds mistakes in them before a job
is queued."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.data.examples.example_rows import ReadRow, all_usable, field_of, names_of
from megatrain.data.examples.labels import complete, refuse_unknown
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection

_LARGEST = 3.4e38  # fp32


class LabelledText(NamedTuple):
    where: str  # file and line
    texts: tuple[str, ...]  # one, or two
    labels: tuple[str, ...]  # one; of several-label problems any number; of a regression none
    number: float = 0.0  # of a regression


def with_labels(
    section: SequenceClassificationSection,
    paths: Sequence[str],
    before: SequenceClassificationSection | None = None,
) -> SequenceClassificationSection:
    """As `labels.complete`."""
    read = reader(section)
    labels = (label for row in all_usable(paths, read) for label in row.labels)
    return complete(section, paths, before, field=section.label_field, found=labels)


def check_rows(paths: Sequence[str], section: SequenceClassificationSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in all_usable(paths, reader(section)):
        pass


def reader(section: SequenceClassificationSection) -> ReadRow[LabelledText]:
    return partial(_labelled, section)


def _labelled(section: SequenceClassificationSection, where: str, row: Mapping[str, Any]) -> LabelledText:
    names = [("text_field", section.text_field)]
    if section.text_pair_field is not None:
        names.append(("text_pair_field", section.text_pair_field))
    texts = tuple(_text(where, row, key, name) for key, name in names)
    value = field_of(row, section.label_field)
    if section.problem == "regression":
        number = _number(value)
        if number is None:
            raise _unusable(section, where, row, "a number")
        return LabelledText(where, texts, (), number)
    if section.problem == "multi_label":
        if not isinstance(value, list):
            raise _unusable(section, where, row, "a list of texts or whole numbers (task.problem: multi_label)")
        labels = tuple(str(one) if type(one) is int else one for one in value)
        if not all(isinstance(one, str) and one for one in labels):
            raise _unusable(section, where, row, "a list of texts or whole numbers")
        if len(set(labels)) < len(labels):
            raise DataError(f"{where}: {section.label_field}: has {max(labels, key=labels.count)!r:.60} twice")
    else:
        label = str(value) if type(value) is int else value
        if not isinstance(label, str) or not label:
            raise _unusable(section, where, row, "text or a whole number")
        labels = (label,)
    refuse_unknown(where, section.label_field, labels, section.labels)
    return LabelledText(where, texts, labels)


def _number(value: Any) -> float | None:
    """A finite number, which a table without types has as text; within fp32. None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST else None


def _unusable(section: SequenceClassificationSection, where: str, row: Mapping[str, Any], wanted: str) -> DataError:
    value = field_of(row, section.label_field)
    given = f"is {value!r:.40}" if value not in (None, "") else "is not there"
    return DataError(
        f"{where}: {section.label_field}: {given}: must be {wanted}; the row has {names_of(row)}. "
        "task.label_field names the field to read"
    )


def _text(where: str, row: Mapping[str, Any], key: str, name: str) -> str:
    value = field_of(row, name)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: {name}: is not there as text; the row has {names_of(row)}. task.{key} names the field to read"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name}: half a surrogate pair at character {error.start}: not Unicode") from None
    if not value.strip():
        raise DataError(f"{where}: {name}: is empty: nothing to learn from; leave the row out")
    return value
