"""The labels of a classifier: given, as its run began with, or found in the training examples. No torch."""

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from megatrain.base.errors import DataError
from megatrain.tasks.relation_extraction.section import RelationExtractionSection
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection
from megatrain.tasks.token_classification.section import TokenClassificationSection

_SHOWN = 8
Section = TypeVar("Section", RelationExtractionSection, SequenceClassificationSection, TokenClassificationSection)


def complete(
    section: Section,
    paths: Sequence[str],
    before: Section | None,
    *,
    field: str,
    found: Iterable[str],
) -> Section:
    """The section with its labels; those that are found are sorted, whole numbers by their value.

    Args:
        before: as the run began.
        field: that holds them, for messages.
        found: in the training examples; read only where labels are not known.

    Raises:
        DataError: a row is unusable, or there are fewer than two labels.
    """
    if section.labels is not None or section.num_labels is not None:  # or there is nothing to name
        return section
    if before is not None and before.labels is not None:
        return section.model_copy(update={"labels": before.labels})
    try:
        labels = set(found)
        if len(labels) < 2:
            shown = ", ".join(map(repr, labels)) or "none"
            raise DataError(
                f"{', '.join(paths)}: {field}: its labels are {shown}: a classifier tells at least two apart. Add "
                "examples of another, or name all in task.labels"
            )
    except DataError as error:
        raise DataError("\n".join(f"finetune.train: {line}" for line in str(error).splitlines())) from None
    ordered = sorted(labels, key=int) if all(map(_is_number, labels)) else sorted(labels)
    return section.model_copy(update={"labels": tuple(ordered)})


def refuse_unknown(where: str, field: str, labels: Collection[str], trained: Sequence[str] | None) -> None:
    """
    Args:
        trained: None where they are being found.

    Raises:
        DataError: one of the labels is not trained.
    """
    strange = next((label for label in labels if trained is not None and label not in trained), None)
    if strange is not None and trained is not None:
        shown = ", ".join(map(repr, trained[:_SHOWN])) + (", …" if len(trained) > _SHOWN else "")
        raise DataError(
            f"{where}: {field}: {strange!r:.60}: is not one of the {len(trained)} labels that are trained ({shown}). "
            "Correct it, leave the row out, or name all labels in task.labels"
        )


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdecimal()
