"""The objective that pretraining and supervised fine-tuning share: cross-entropy of the next token."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.data.text.byte_lengths import byte_lengths
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.kernels.cross_entropy import NO_TERMS, LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss and cross_entropy
from megatrain.tasks.base import LossSums, Model
from megatrain.tasks.loss_section import TokenLossSection

_MOST_NATS = 700.0  # e to the power of more is no number

METRICS.register(
    "validation_targets",
    Metric(unit="target tokens of an evaluation", tag=None, format="{:,.0f}".format, console="({value} tokens)"),
)


class CausalLM:
    """Cross-entropy of the next token.

    Args:
        terms: of the loss in training, which an evaluation leaves out.
        lengths: of each id, how many bytes of text it is; None: not known, and no bits per byte.
    """

    def __init__(self, terms: LossTerms = NO_TERMS, lengths: Sequence[int] | None = None) -> None:
        self._terms = terms
        self._lengths = None if lengths is None else torch.tensor(lengths)

    def loss(self, model: Model, batch: Batch) -> LossSums:
        """Nats, over the labels other than IGNORE_INDEX."""
        if not self._terms:
            return LossSums(_forward(model, batch))
        loss, cross_entropy = _forward(model, batch, terms=self._terms)
        return LossSums(loss, {"cross_entropy": cross_entropy})

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        sums = {"loss": _forward(model, batch), "targets": (batch.labels != IGNORE_INDEX).sum()}
        return sums if self._lengths is None else sums | {"bytes": self._bytes(batch.labels)}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        loss = sums["loss"] / max(sums["targets"], 1.0)
        found = {
            "validation_loss": loss,
            "validation_targets": sums["targets"],
            "perplexity": math.exp(min(loss, _MOST_NATS)),
        }
        if sums.get("bytes"):
            found["bits_per_byte"] = sums["loss"] / math.log(2) / sums["bytes"]
        return found

    def _bytes(self, labels: Tensor) -> Tensor:
        """Of the text that the targets are; ids behind the vocabulary are none."""
        assert self._lengths is not None
        if self._lengths.device != labels.device:
            self._lengths = self._lengths.to(labels.device)
        of_tokens = self._lengths[labels.clamp(0, len(self._lengths) - 1)]
        return (of_tokens * ((labels >= 0) & (labels < len(self._lengths)))).sum()


def known_byte_lengths(tokenizer_path: str | None) -> list[int] | None:
    """As `data.text.byte_lengths`; None where there is no tokenizer."""
    return None if tokenizer_path is None else byte_lengths(Tokenizer.load(tokenizer_path))


def loss_terms(section: TokenLossSection) -> LossTerms:
    return LossTerms(z_loss=section.z_loss, label_smoothing=section.label_smoothing)


def _forward(model: Model, batch: Batch, **options: LossTerms) -> Any:
    places = {"position_ids_BS": batch.position_ids, "cu_seqlens": batch.cu_seqlens}
    return model(batch.input_ids, batch.labels, **places, **options)
