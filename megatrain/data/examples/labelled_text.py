"""Rows of files as texts with a label. No torch: the launcher finds mistakes in them before a job is queued."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.data.examples.prompt_completion import Mistakes, TooManyMistakesError, field_of, names_of
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.rows import Row, read_rows
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection

_SHOWN = 8  # labels


class LabelledText(NamedTuple):
    where: str  # file and line
    texts: tuple[str, ...]  # one, or two
    label: str


def with_labels(
    section: SequenceClassificationSection,
    paths: Sequence[str],
    before: SequenceClassificationSection | None = None,
) -> SequenceClassificationSection:
    """The section with its labels: as they are given, as the run began, or those of the training examples, sorted:
    whole numbers by their value.

    Raises:
        DataError: a row is unusable, or there are fewer than two labels.
    """
    if section.labels is not None:
        return section
    if before is not None and before.labels is not None:
        return section.model_copy(update={"labels": before.labels})
    try:
        found = {row.label for row in rows_of(paths, section)}
        if len(found) < 2:
            shown = ", ".join(map(repr, found)) or "none"
            raise DataError(
                f"{', '.join(paths)}: {section.label_field}: its labels are {shown}: a classifier tells at least two "
                "apart. Add examples of another, or name all in task.labels"
            )
    except DataError as error:
        raise DataError("\n".join(f"finetune.train: {line}" for line in str(error).splitlines())) from None
    ordered = sorted(found, key=int) if all(map(_is_number, found)) else sorted(found)
    return section.model_copy(update={"labels": tuple(ordered)})


def check_rows(paths: Sequence[str], section: SequenceClassificationSection) -> None:
    """Read every row, for when there is no tokenizer to encode it with.

    Raises:
        DataError: rows are unusable; names file and line of each, up to a limit.
    """
    for _ in rows_of(paths, section):
        pass


def rows_of(paths: Sequence[str], section: SequenceClassificationSection) -> Iterator[LabelledText]:
    """The rows of files, folders and glob patterns, in their order; at the end raises DataError as `check_rows`."""
    mistakes = Mistakes()
    for file in find_inputs(paths).inputs:
        rows = 0
        for row in texts_of(read_rows(file), section, mistakes):
            rows += 1
            yield row
        if not rows:
            mistakes.add_empty(str(file))
    mistakes.demand_none()


def texts_of(rows: Iterator[Row], section: SequenceClassificationSection, mistakes: Mistakes) -> Iterator[LabelledText]:
    """The usable rows; what is wrong with the others, or with their file, is a mistake."""
    try:
        for row in rows:
            try:
                text = _labelled(row.where, row.fields, section)
            except DataError as error:
                mistakes.add(error)
            else:
                yield text
    except TooManyMistakesError:
        raise
    except DataError as error:
        mistakes.add(error)


def _labelled(where: str, row: Mapping[str, Any], section: SequenceClassificationSection) -> LabelledText:
    names = [("text_field", section.text_field)]
    if section.text_pair_field is not None:
        names.append(("text_pair_field", section.text_pair_field))
    texts = tuple(_text(where, row, key, name) for key, name in names)
    value = field_of(row, section.label_field)
    label = str(value) if type(value) is int else value
    if not isinstance(label, str) or not label:
        given = f"is {value!r:.40}" if value not in (None, "") else "is not there"
        raise DataError(
            f"{where}: {section.label_field}: {given}: must be text or a whole number; the row has {names_of(row)}. "
            "task.label_field names the field to read"
        )
    if section.labels is not None and label not in section.labels:
        shown = ", ".join(map(repr, section.labels[:_SHOWN])) + (", …" if len(section.labels) > _SHOWN else "")
        raise DataError(
            f"{where}: {section.label_field}: {label!r:.60}: is not one of the {len(section.labels)} labels that are "
            f"trained ({shown}). Correct it, leave the row out, or name all labels in task.labels"
        )
    return LabelledText(where, texts, label)


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


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdecimal()
