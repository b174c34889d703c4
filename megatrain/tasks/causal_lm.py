"""The objective that pretraining and supervised fine-tuning share: cross-entropy of the next token."""

from collections.abc import Mapping

from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks.base import LossSums, Model

METRICS.register(
    "validation_loss", Metric(unit="nats per target token", tag="validation/loss", console="validation loss {value}")
)
METRICS.register(
    "validation_targets",
    Metric(unit="target tokens of an evaluation", tag=None, format="{:,.0f}".format, console="({value} tokens)"),
)


class CausalLM:
    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Nats, over the labels other than IGNORE_INDEX."""
        loss = model(batch.input_ids, batch.labels, position_ids_BS=batch.position_ids, cu_seqlens=batch.cu_seqlens)
        return LossSums(loss)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch).loss, "targets": (batch.labels != IGNORE_INDEX).sum()}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"validation_loss": sums["loss"] / max(sums["targets"], 1.0), "validation_targets": sums["targets"]}
