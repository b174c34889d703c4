"""From the peak to min_lr_ratio of it along a line."""

from typing import Literal

from pydantic import Field

from megatrain.base.types import Fraction
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class LinearSection(ScheduleSection):
    name: Literal["linear"] = "linear"
    min_lr_ratio: Fraction = Field(0.1, description="final learning rate over the peak")


def factor(section: LinearSection, place: Place) -> float:
    remaining = 1.0 - place.done
    return section.min_lr_ratio + (1.0 - section.min_lr_ratio) * remaining


SCHEDULES.register("linear", ScheduleSpec(section=LinearSection, factor=factor))
