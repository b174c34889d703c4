"""`task.class_weights`: how much an example of each label counts. No torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

ClassWeights = dict[str, Annotated[float, Field(strict=False, ge=0, allow_inf_nan=False)]] | Literal["balanced"]


def class_weights(given: ClassWeights | None, labels: Sequence[str], counts: Mapping[str, int]) -> list[float] | None:
    """A weight for each label; None where all count alike.

    Args:
        given: weights of some labels, the others have 1; or "balanced": examples / (labels · examples of the label), as
            scikit-learn's compute_class_weight has it. A label without examples has 0 then.
        counts: training examples of each label.
    """
    if given is None:
        return None
    if given == "balanced":
        present = sum(1 for label in labels if counts.get(label))
        examples = sum(counts.get(label, 0) for label in labels)
        return [examples / (present * counts[label]) if counts.get(label) else 0.0 for label in labels]
    assert isinstance(given, dict)
    return [given.get(label, 1.0) for label in labels]


def weight_issues(given: ClassWeights | None, labels: Sequence[str] | None) -> Iterator[tuple[str, Any, str, str]]:
    """Field, value, rule and fix, where weights are of no label, or leave nothing to learn."""
    if given is None or given == "balanced" or labels is None:
        return
    assert isinstance(given, dict)
    strange = [label for label in given if label not in labels]
    if strange:
        rule = f"has a weight of {strange[0]!r:.60}, which is not one of the labels ({', '.join(labels[:8])})"
        yield "task.class_weights", given, rule, "Name labels of the examples; those left out have weight 1."
    if not math.fsum(given.get(label, 1.0) for label in labels):
        yield "task.class_weights", given, "is 0 for every label: nothing would be learnt", "Give one of them more."
