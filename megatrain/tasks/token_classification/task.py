"""One rank's batches of a token classification, and entity F1."""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.monitor.metric import METRICS, Metric
from megatrain.tasks.base import Model
from megatrain.tasks.classification import Classification, forward
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.token_classification.entities import entities
from megatrain.tasks.token_classification.section import TokenClassificationSection

METRICS.register(
    "entity_f1",
    Metric(
        unit="F1 of the entities of an evaluation, type and words alike, as seqeval counts them",
        tag="validation/entity_f1",
        format="{:.3f}".format,
        console="entity F1 {value}",
    ),
)
METRICS.register(
    "validation_words",
    Metric(unit="tagged words of an evaluation", tag=None, format="{:,.0f}".format, console="({value} words)"),
)


class TokenClassification(Classification, ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        section = cast(TokenClassificationSection, config.task)
        assert section.labels is not None, "the launcher finds them"
        self._tags = section.labels
        terms = LossTerms(label_smoothing=section.label_smoothing)
        Classification.__init__(self, len(section.labels), terms, r_drop=config.finetune.r_drop)
        ExampleTask.__init__(self, config)

    def evaluation_sums(self, model: Model, batch: Batch) -> dict[str, Tensor]:
        """Of whole sequences, which every context-parallel rank sees: each counts its share of what all find."""
        logits_BSC = forward(model, batch, None).float()
        names = ("loss", "words", "right", "entities right", "entities said", "entities there")
        if batch.whole_labels is None:
            return {name: logits_BSC.new_zeros(()) for name in names}
        counted_BS = batch.whole_labels != IGNORE_INDEX
        logits_NC, labels_N = logits_BSC[counted_BS], batch.whole_labels[counted_BS]
        said_N = logits_NC.argmax(-1)
        documents_N = _documents(batch)[counted_BS]
        said, there = (
            entities([self._tags[tag] for tag in tags.tolist()], documents_N.tolist()) for tags in (said_N, labels_N)
        )
        counts = [len(labels_N), int((said_N == labels_N).sum()), len(said & there), len(said), len(there)]
        loss = F.cross_entropy(logits_NC, labels_N, reduction="sum").double()
        share = batch.labels.shape[1] / batch.whole_labels.shape[1]
        values = [loss, *(loss.new_tensor(float(count)) for count in counts)]
        return {name: value * share for name, value in zip(names, values, strict=True)}

    def evaluation_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        words = max(sums["words"], 1.0)
        return {
            "validation_loss": sums["loss"] / words,
            "accuracy": sums["right"] / words,
            "entity_f1": 2 * sums["entities right"] / max(sums["entities said"] + sums["entities there"], 1.0),
            "validation_words": sums["words"],
        }


def _documents(batch: Batch) -> Tensor:
    """[B, S]: which example each position is of, counted over the batch."""
    assert batch.cu_seqlens is not None
    assert batch.whole_labels is not None
    places = torch.arange(batch.whole_labels.numel(), dtype=torch.int32, device=batch.cu_seqlens.device)
    return torch.bucketize(places, batch.cu_seqlens, right=True).view(batch.whole_labels.shape)
