"""The phases of a run's data: from which sample on it is mixed by which weights, and cut into how long sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatrain.config import DataSection
from megatrain.data.ordering.mixture import quotas
from megatrain.data.ordering.order import Phase


@dataclass(frozen=True, slots=True)
class CurriculumPhase:
    """From sample `first` to the next phase's first."""

    first: int
    weights: tuple[float, ...]  # of each source
    sequence_length: int

    def order_phase(self) -> Phase:
        return Phase(self.first, quotas(self.weights))


def curriculum(data: DataSection) -> list[CurriculumPhase]:
    """The phases of the configuration, ascending, the first from sample 0. Each changes what it names in data itself,
    not in the phase before it."""
    weights = tuple(source.weight for source in data.train)
    phases = [
        CurriculumPhase(
            phase.from_sample,
            weights if phase.weights is None else phase.weights,
            phase.sequence_length or data.sequence_length,
        )
        for phase in data.phases
    ]
    if not phases or phases[0].first > 0:
        phases.insert(0, CurriculumPhase(0, weights, data.sequence_length))
    return phases


def samples_per_phase(phases: Sequence[CurriculumPhase], samples: int) -> list[int]:
    """How many of a run's samples are in each phase."""
    ends = [phase.first for phase in phases[1:]] + [samples]
    return [max(0, min(end, samples) - phase.first) for phase, end in zip(phases, ends, strict=True)]
