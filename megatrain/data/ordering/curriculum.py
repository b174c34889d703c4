"""The stages of a run's data: from which sample on it is mixed by which weights, and cut into how long sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatrain.config import DataSection
from megatrain.data.ordering.mixture import quotas
from megatrain.data.ordering.order import Stage


@dataclass(frozen=True, slots=True)
class CurriculumStage:
    """From sample `first` to the next stage's first."""

    first: int
    weights: tuple[float, ...]  # of each source
    sequence_length: int

    def order_stage(self) -> Stage:
        return Stage(self.first, quotas(self.weights))


def curriculum(data: DataSection) -> list[CurriculumStage]:
    """The stages of the configuration, ascending, the first from sample 0. Each changes what it names in data itself,
    not in the stage before it."""
    weights = tuple(source.weight for source in data.train)
    stages = [
        CurriculumStage(
            stage.from_sample,
            weights if stage.weights is None else stage.weights,
            stage.sequence_length or data.sequence_length,
        )
        for stage in data.stages
    ]
    if not stages or stages[0].first > 0:
        stages.insert(0, CurriculumStage(0, weights, data.sequence_length))
    return stages


def samples_per_stage(stages: Sequence[CurriculumStage], samples: int) -> list[int]:
    """How many of a run's samples are in each stage."""
    ends = [stage.first for stage in stages[1:]] + [samples]
    return [max(0, min(end, samples) - stage.first) for stage, end in zip(stages, ends, strict=True)]
