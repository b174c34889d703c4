"""What a schedule registers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatrain.base.registry import Registry
from megatrain.base.section import Section
from megatrain.base.types import NonNegative


class ScheduleSection(Section):
    """What every schedule's section has."""

    name: str = "cosine"
    warmup_steps: NonNegative = 0


class Place(NamedTuple):
    """Where an update stands in a run; all three in samples, or all three in steps.

    Attributes:
        begin: where warm-up ends.
        now: what is consumed with this update; more than `begin`.
        end: what the whole run consumes.
        branch: where the run left the one that it goes on from; 0 of a run that began by itself.
    """

    begin: int
    now: int
    end: int
    branch: int = 0

    @property
    def done(self) -> float:
        """The part of what comes after warm-up, 0 to 1."""
        return min(1.0, (self.now - self.begin) / max(1, self.end - self.begin))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """A schedule.

    Attributes:
        section: its `schedule:` section.
        factor: (section, place of the update) -> the rate over its peak.
        ends: whether the rate depends on where the run ends, so that a warm-up beyond it is a mistake.
    """

    section: type[ScheduleSection]
    factor: Callable[[Any, Place], float]
    ends: bool = True


SCHEDULES: Registry[ScheduleSpec] = Registry("schedule")
