"""Precision, recall and F1 of each label, by counts of what an evaluation found: as scikit-learn defines them."""

import re
from collections.abc import Sequence

from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks.class_names import KINDS, class_names

Counts = Sequence[Sequence[float]]  # of each label: how often it is right, predicted, and there


class ClassReport:
    """Metrics of each label under names of their own, such as "f1/spam"; none where there are very many labels.

    Args:
        labels: in the order of the counts.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._names = class_names(labels)
        charts = [re.sub(r"[^-\w./ ]", "_", name) for name in self._names]
        if len(set(charts)) < len(charts):
            charts = [f"{number} {chart}" for number, chart in enumerate(charts)]
        for name, chart in zip(self._names, charts, strict=True):
            for kind in KINDS:
                if f"{kind}/{name}" not in METRICS:
                    unit = f"{kind} of the label {name} in an evaluation; 0 where it is not defined"
                    METRICS.register(
                        f"{kind}/{name}", Metric(unit=unit, tag=f"validation_{kind}/{chart}", format="{:.3f}".format)
                    )

    def values(self, counts: Counts) -> dict[str, float]:
        found = {}
        for name, (right, said, there) in zip(self._names, counts, strict=False):
            found[f"precision/{name}"] = right / said if said else 0.0
            found[f"recall/{name}"] = right / there if there else 0.0
            found[f"f1/{name}"] = f1(right, said, there)
        return found


def f1(right: float, said: float, there: float) -> float:
    return 2 * right / (said + there) if said + there else 0.0


def macro_f1(counts: Counts) -> float:
    """Mean over the labels of 2·right / (said + there), as scikit-learn's f1_score(average="macro") has it: over the
    labels that are said or there."""
    scores = [f1(right, said, there) for right, said, there in counts if said + there]
    return sum(scores) / max(len(scores), 1)
