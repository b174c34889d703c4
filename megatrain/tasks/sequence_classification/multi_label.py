"""The objective of several labels for each text: each is there or not, whatever the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.kernels.class_loss import TargetLoss
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.class_report import ClassReport, f1
from megatrain.tasks.classification import forward


class MultiLabel:
    """Binary cross-entropy of each label, in the mean over the labels. A label is predicted where its probability is
    above one half.

    Args:
        labels: in the order of the logits.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = len(labels)
        self._report = ClassReport(labels)

    def loss(self, model: Model, batch: Batch) -> LossSums:
        assert batch.example_targets is not None
        terms = TargetLoss(kind="binary", targets=batch.example_targets)
        loss, _ = forward(model, batch, batch.labels, terms=terms)
        return LossSums(loss)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """The loss, how many examples are wholly right, and of each label how often it is right, said, and there."""
        logits_NC, targets_NC = labelled(model, batch, self._labels)
        said_NC, there_NC = logits_NC > 0, targets_NC > 0.5
        loss = F.binary_cross_entropy_with_logits(logits_NC, targets_NC, reduction="sum") / self._labels
        sums = {
            "loss": loss,
            "examples": loss.new_tensor(float(len(logits_NC))),
            "exact": (said_NC == there_NC).all(-1).sum(),
        }
        for name, counts in (("right", said_NC & there_NC), ("said", said_NC), ("there", there_NC)):
            sums |= {f"{name} {label}": count for label, count in enumerate(counts.sum(0))}
        return sums

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """As scikit-learn's f1_score and accuracy_score have them of label indicators: a label that is neither said nor
        there has an F1 of 0, and counts in the mean."""
        counts = [[sums[f"{name} {label}"] for name in ("right", "said", "there")] for label in range(self._labels)]
        examples = max(sums["examples"], 1.0)
        right, said, there = (sum(count[kind] for count in counts) for kind in range(3))
        return {
            "validation_loss": sums["loss"] / examples,
            "accuracy": sums["exact"] / examples,
            "micro_f1": f1(right, said, there),
            "macro_f1": sum(f1(*count) for count in counts) / self._labels,
            "validation_examples": sums["examples"],
            **self._report.values(counts),
        }


def labelled(model: Model, batch: Batch, outputs: int) -> tuple[Tensor, Tensor]:
    """Fp32 logits [N, C] of the examples whose label this rank sees, and their targets."""
    logits_BSC = forward(model, batch, None).float()
    counted_BS = batch.labels != IGNORE_INDEX
    if batch.example_targets is None:
        return logits_BSC[counted_BS], logits_BSC.new_zeros(0, outputs)
    return logits_BSC[counted_BS], batch.example_targets[batch.labels[counted_BS]]
