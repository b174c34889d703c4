"""One rank's batches of a sequence classification."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.examples.packing import NO_LABEL, PackedRow
from megatrain.data.loading.batch import Batch
from megatrain.kernels.class_loss import ClassWeights
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.class_weights import class_weights
from megatrain.tasks.classification import Classification
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.sequence_classification.multi_label import MultiLabel
from megatrain.tasks.sequence_classification.regression import Regression
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection

_SHOWN = 8  # weights


class SequenceClassification(ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        super().__init__(config)
        self._section = cast(SequenceClassificationSection, config.task)
        self._labels = self._section.classes
        self._weights = class_weights(self._section.class_weights, self._labels, self._counts())
        self._objective = self._objective_of(self._section)

    def loss(self, model: Model, batch: Batch) -> LossSums:
        return self._objective.loss(model, batch)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return self._objective.evaluation_sums(model, batch)

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return self._objective.evaluation_metrics(sums)

    def lines(self, progress: Progress) -> Iterator[str]:
        yield from super().lines(progress)
        if self._weights is not None:
            pairs = [f"{label} {weight:.4g}" for label, weight in zip(self._labels, self._weights, strict=True)]
            more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
            yield f"class weights: {', '.join(pairs[:_SHOWN])}{more}"

    def _weight_of(self, row: PackedRow) -> float:
        """What the loss of a row is divided by: its examples, or the weights of their labels."""
        if self._weights is None or row.labels is None:
            return row.targets
        return sum(self._weights[label] for label in row.labels[row.labels != NO_LABEL].tolist())

    def _counts(self) -> Mapping[str, int]:
        """Training examples of each label."""
        if self._section.class_weights is None:
            return {}
        numbers: Counter[int] = Counter()
        for row in self._training.rows:
            assert row.labels is not None
            numbers.update(row.labels[row.labels != NO_LABEL].tolist())
        return {self._labels[number]: count for number, count in numbers.items()}

    def _objective_of(self, section: SequenceClassificationSection) -> Classification | MultiLabel | Regression:
        if section.problem == "multi_label":
            return MultiLabel(self._labels)
        if section.problem == "regression":
            return Regression()
        smoothing = section.label_smoothing
        terms = LossTerms(label_smoothing=smoothing)
        if self._weights is not None:
            weights = torch.tensor(self._weights, dtype=torch.float32)
            terms = ClassWeights(label_smoothing=smoothing, weights=weights)
        return Classification(len(self._labels), terms, self._labels, self._config.finetune.r_drop)
