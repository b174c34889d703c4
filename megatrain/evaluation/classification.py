"""Precision, recall and F1 of each class, from a confusion matrix, as scikit-learn defines them. Plain Python.

A confusion matrix has a row for each class that is there and a column for each that is said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Confusion = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Of one class. A share of nothing is 0."""

    name: str
    precision: float  # of those that are said to be of it, how many are
    recall: float  # of those that are of it, how many are said to be
    f1: float
    said: int
    there: int  # scikit-learn's support


@dataclass(frozen=True, slots=True)
class ClassReport:
    """
    Attributes:
        macro_f1: mean over the classes that are there or said.
        weighted_f1: mean over the examples' classes.
    """

    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    accuracy: float
    macro_f1: float
    weighted_f1: float
    examples: int


def confusion_of(there: Iterable[int], said: Iterable[int], classes: int) -> list[list[int]]:
    """The confusion matrix of examples."""
    matrix = [[0] * classes for _ in range(classes)]
    for row, column in zip(there, said, strict=True):
        matrix[row][column] += 1
    return matrix


def report_of(confusion: Confusion, names: Sequence[str]) -> ClassReport:
    """Everything that follows from a confusion matrix."""
    numbers = range(len(names))
    there = [sum(confusion[number]) for number in numbers]
    said = [sum(confusion[row][number] for row in numbers) for number in numbers]
    right = [confusion[number][number] for number in numbers]
    scores = [
        ClassScores(
            name=names[number],
            precision=_share(right[number], said[number]),
            recall=_share(right[number], there[number]),
            f1=_share(2 * right[number], said[number] + there[number]),
            said=int(said[number]),
            there=int(there[number]),
        )
        for number in numbers
    ]
    counted = [score.f1 for score in scores if score.said or score.there]
    return ClassReport(
        classes=tuple(scores),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        accuracy=_share(sum(right), sum(there)),
        macro_f1=_share(sum(counted), len(counted)),
        weighted_f1=_share(sum(score.f1 * score.there for score in scores), sum(there)),
        examples=int(sum(there)),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
