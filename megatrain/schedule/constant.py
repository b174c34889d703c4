"""The peak, after warm-up."""

from typing import Literal

from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class ConstantSection(ScheduleSection):
    name: Literal["constant"] = "constant"


def factor(section: ConstantSection, place: Place) -> float:
    return 1.0


SCHEDULES.register("constant", ScheduleSpec(section=ConstantSection, factor=factor, ends=False))
