"""From the peak to zero along a square root."""

from typing import Literal

from megatrain.schedule.registry import SCHEDULES, ScheduleSection, ScheduleSpec


class SquareRootSection(ScheduleSection):
    name: Literal["toy_sqrt"] = "toy_sqrt"


SCHEDULES.register(
    "toy_sqrt", ScheduleSpec(section=SquareRootSection, factor=lambda section, place: (1 - place.done) ** 0.5)
)
