"""One rank's batches of a sequence classification."""

from typing import cast

from megatrain.config.resolved import ResolvedFinetune
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.classification import Classification
from megatrain.tasks.on_examples import ExampleTask
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection


class SequenceClassification(Classification, ExampleTask):
    def __init__(self, config: ResolvedFinetune) -> None:
        section = cast(SequenceClassificationSection, config.task)
        assert section.labels is not None, "the launcher finds them"
        Classification.__init__(self, len(section.labels), LossTerms(label_smoothing=section.label_smoothing))
        ExampleTask.__init__(self, config)
