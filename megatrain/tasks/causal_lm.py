"""The objective that pretraining and supervised fine-tuning share: cross-entropy of the next token."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.kernels.cross_entropy import NO_TERMS, LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss and cross_entropy
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.loss_section import TokenLossSection

METRICS.register(
    "validation_targets",
    Metric(unit="target tokens of an evaluation", tag=None, format="{:,.0f}".format, console="({value} tokens)"),
)


class CausalLM:
    """Cross-entropy of the next token.

    Args:
        terms: of the loss in training, which an evaluation leaves out.
    """

    def __init__(self, terms: LossTerms = NO_TERMS) -> None:
        self._terms = terms

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Nats, over the labels other than IGNORE_INDEX."""
        if not self._terms:
            return LossSums(_forward(model, batch))
        loss, cross_entropy = _forward(model, batch, terms=self._terms)
        return LossSums(loss, {"cross_entropy": cross_entropy})

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return {"loss": _forward(model, batch), "targets": (batch.labels != IGNORE_INDEX).sum()}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"validation_loss": sums["loss"] / max(sums["targets"], 1.0), "validation_targets": sums["targets"]}


def loss_terms(section: TokenLossSection) -> LossTerms:
    return LossTerms(z_loss=section.z_loss, label_smoothing=section.label_smoothing)


def _forward(model: Model, batch: Batch, **options: LossTerms) -> Any:
    places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    return model(batch.input_ids, batch.labels, **places, **options)
