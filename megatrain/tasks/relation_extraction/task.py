"""One rank's batches of a relation extraction, and micro F1 of what are relations."""

from collections.abc import Mapping
from typing import Any, cast

from megatrain.config.resolved import ResolvedFinetune
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.class_report import f1
from megatrain.tasks.classification import Classification
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.relation_extraction.section import RelationExtractionSection


class RelationExtraction(Classification, ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        self._section = section = cast(RelationExtractionSection, config.task)
        self._names = section.classes
        terms = LossTerms(label_smoothing=section.label_smoothing)
        Classification.__init__(self, len(self._names), terms, self._names, config.finetune.r_drop)
        ExampleTask.__init__(self, config)

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        found = super().evaluation_metrics(sums)
        if self._section.no_relation is None:
            return found
        related = [number for number, name in enumerate(self._names) if name != self._section.no_relation]
        right, said, there = (sum(sums[f"{kind} {label}"] for label in related) for kind in ("right", "said", "there"))
        first = {name: found[name] for name in ("validation_loss", "accuracy", "macro_f1")}
        return first | {"micro_f1": f1(right, said, there)} | found
