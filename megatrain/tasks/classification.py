"""The objective of classifiers: cross-entropy of a label at some of the positions, and the metrics of what they say."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.kernels.cross_entropy import NO_TERMS, LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss and cross_entropy
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.class_report import ClassReport, macro_f1
from megatrain.tasks.r_drop import r_drop_loss, twice

METRICS.register(
    "accuracy",
    Metric(
        unit="share of an evaluation's examples whose label, or whole set of labels, is predicted",
        tag="validation/accuracy",
        format="{:.1%}".format,
        console="accuracy {value}",
    ),
)
METRICS.register(
    "macro_f1",
    Metric(
        unit="mean of the F1 of each label that examples of an evaluation have, or are said to have",
        tag="validation/macro_f1",
        format="{:.3f}".format,
        console="macro F1 {value}",
    ),
)
METRICS.register(
    "micro_f1",
    Metric(
        unit="F1 of all labels of an evaluation, counted together; of relations, without that of none",
        tag="validation/micro_f1",
        format="{:.3f}".format,
        console="micro F1 {value}",
    ),
)
METRICS.register(
    "validation_examples",
    Metric(unit="examples of an evaluation", tag=None, format="{:,.0f}".format, console="({value} examples)"),
)


class Classification:
    """Cross-entropy of the labels.

    Args:
        labels: how many there are.
        terms: of the loss in training, which an evaluation leaves out.
        names: of the labels that are reported one by one.
        r_drop: alpha of R-Drop; 0: each example goes through the model once.
    """

    def __init__(
        self, labels: int, terms: LossTerms = NO_TERMS, names: Sequence[str] = (), r_drop: float = 0.0
    ) -> None:
        self._labels = labels
        self._r_drop = r_drop
        self._terms = terms
        self._report = ClassReport(names)

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Nats, over the labels other than IGNORE_INDEX."""
        if self._r_drop:
            return self._loss_of_two(model, batch)
        if not self._terms:
            return LossSums(forward(model, batch, batch.labels))
        self._terms = self._terms.to(batch.labels.device)
        loss, cross_entropy = forward(model, batch, batch.labels, terms=self._terms)
        return LossSums(loss, {"cross_entropy": cross_entropy} if self._terms.label_smoothing else {})

    def _loss_of_two(self, model: Model, batch: Batch) -> LossSums:
        self._terms = self._terms.to(batch.labels.device)
        logits_BSC, labels_BS = forward(model, twice(batch), None).float(), batch.labels
        if logits_BSC.shape[1] == labels_BS.shape[1]:
            return r_drop_loss(logits_BSC, labels_BS, self._r_drop, self._terms)
        # every rank of a sequence sees all of it, and counts its share
        assert batch.whole_labels is not None
        share = labels_BS.shape[1] / logits_BSC.shape[1]
        loss, extras = r_drop_loss(logits_BSC, batch.whole_labels, self._r_drop, self._terms)
        return LossSums(loss * share, {name: value * share for name, value in extras.items()})

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The loss, and of each label how often it is right, said, and there."""
        logits_BSC = forward(model, batch, None)
        labels_BS, share = batch.labels, 1.0
        if logits_BSC.shape[1] != labels_BS.shape[1]:  # every rank of a sequence sees all of it, and counts its share
            share = labels_BS.shape[1] / logits_BSC.shape[1]
            nothing = labels_BS.new_full(logits_BSC.shape[:2], IGNORE_INDEX)
            labels_BS = nothing if batch.whole_labels is None else batch.whole_labels
        counted = labels_BS != IGNORE_INDEX
        logits_NC, labels_N = logits_BSC[counted].float(), labels_BS[counted]
        said_N = logits_NC.argmax(-1)
        right = torch.bincount(labels_N[said_N == labels_N], minlength=self._labels)
        said, there = (torch.bincount(of, minlength=self._labels) for of in (said_N, labels_N))
        sums = {"loss": F.cross_entropy(logits_NC, labels_N, reduction="sum")}
        for name, counts in (("right", right), ("said", said), ("there", there)):
            sums |= {f"{name} {label}": count for label, count in enumerate(counts)}
        return sums if share == 1.0 else {name: value.double() * share for name, value in sums.items()}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        counts = [[sums[f"{name} {label}"] for name in ("right", "said", "there")] for label in range(self._labels)]
        right, examples = sum(count[0] for count in counts), sum(count[2] for count in counts)
        return {
            "validation_loss": sums["loss"] / max(examples, 1.0),
            "accuracy": right / max(examples, 1.0),
            "macro_f1": macro_f1(counts),
            "validation_examples": examples,
            **self._report.values(counts),
        }


def forward(model: Model, batch: Batch, labels: Tensor | None, **options: Any) -> Any:
    """The model's answer: its loss, or without labels its logits [B, S, labels]."""
    places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    if batch.token_types is not None:
        options["token_types_BS"] = batch.token_types
    return model(batch.input_ids, labels, **places, **options)
