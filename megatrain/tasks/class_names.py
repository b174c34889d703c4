"""Names of what is reported of each label. No torch: the launcher checks them."""

from collections.abc import Sequence

MOST_LABELS = 200  # that are reported one by one: their values stand in a line of metrics.jsonl
KINDS = ("precision", "recall", "f1")
_LONGEST = 60  # characters of a label in the name of a metric


def class_names(labels: Sequence[str]) -> list[str]:
    """Short and unique names of the labels; none where there are very many."""
    short = [label[:_LONGEST] for label in labels]
    unique = len(set(short)) == len(short)
    names = short if unique else [f"{number} {label}" for number, label in enumerate(short)]
    return names if len(names) <= MOST_LABELS else []


def class_metrics(labels: Sequence[str]) -> tuple[str, ...]:
    """Such as "f1/spam"."""
    return tuple(f"{kind}/{name}" for name in class_names(labels) for kind in KINDS)
