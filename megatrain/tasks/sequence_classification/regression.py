"""The objective of a number for each text, and what correlates with it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatrain.data.loading.batch import Batch
from megatrain.kernels.class_loss import TargetLoss
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.classification import forward
from megatrain.tasks.sequence_classification.multi_label import labelled

for _name, _unit, _console in (
    ("mse", "mean squared error of an evaluation", None),
    ("mae", "mean absolute error of an evaluation", "MAE {value}"),
    ("pearson", "correlation of prediction and target in an evaluation; 0 where one of them is constant", "r {value}"),
    ("spearman", "correlation of their ranks, ties by their mean; 0 where one of them is constant", "rho {value}"),
):
    METRICS.register(_name, Metric(unit=_unit, tag=f"validation/{_name}", format="{:.4g}".format, console=_console))


class Regression:
    """Squared error of the only output."""

    def loss(self, model: Model, batch: Batch) -> LossSums:
        assert batch.example_targets is not None
        terms = TargetLoss(kind="squared", targets=batch.example_targets)
        loss, _ = forward(model, batch, batch.labels, terms=terms)
        return LossSums(loss)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """How many there are, and of each its prediction and its target: ranks are of all of them."""
        predicted_N1, targets_N1 = labelled(model, batch, 1)
        return {
            "examples": predicted_N1.new_tensor(float(len(predicted_N1))),
            "pairs": torch.cat((predicted_N1, targets_N1), 1),
        }

    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        predicted_N, targets_N = sums["pairs"].double().unbind(1)
        difference_N = predicted_N - targets_N
        squared = float(difference_N.square().mean()) if len(difference_N) else 0.0
        return {
            "validation_loss": squared,
            "mse": squared,
            "mae": float(difference_N.abs().mean()) if len(difference_N) else 0.0,
            "pearson": pearson(predicted_N, targets_N),
            "spearman": pearson(ranks(predicted_N), ranks(targets_N)),
            "validation_examples": sums["examples"],
        }


def pearson(x_N: Tensor, y_N: Tensor) -> float:
    """Of fp64 values; 0 where it is not defined."""
    if len(x_N) < 2:
        return 0.0
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    spread = float(x_N.norm() * y_N.norm())
    return max(-1.0, min(1.0, float(x_N @ y_N) / spread)) if spread else 0.0


def ranks(x_N: Tensor) -> Tensor:
    """From 1, fp64; equal values have the mean of their ranks."""
    _, which_N, counts = torch.unique(x_N, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[which_N]
