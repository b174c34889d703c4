"""What a schedule registers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatrain.base.registry import Registry
from megatrain.base.section import Section
from megatrain.base.types import NonNegative


class ScheduleSection(Section):
    """What every schedule's section has."""

    name: str = "cosine"
    warmup_steps: NonNegative = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """A schedule.

    Attributes:
        section: its `schedule:` section.
        factor: (section, part of the steps after warm-up that is done, 0 to 1) -> the rate over its peak.
        ends: whether the rate depends on where the run ends, so that a warm-up beyond it is a mistake.
    """

    section: type[ScheduleSection]
    factor: Callable[[Any, float], float]
    ends: bool = True


SCHEDULES: Registry[ScheduleSpec] = Registry("schedule")
