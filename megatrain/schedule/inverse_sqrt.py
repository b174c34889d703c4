"""From the peak along 1/√t, t counted from the start of the run (arXiv 1706.03762, section 5.3). It knows no end: a run
may be made longer without another rate for what it has done."""

import math
from typing import Literal

from pydantic import Field

from megatrain.base.types import Count
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class InverseSqrtSection(ScheduleSection):
    name: Literal["inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: Count = Field(description="at whose end the rate is at its peak; half of it four times as far")


def factor(section: InverseSqrtSection, place: Place) -> float:
    return math.sqrt(place.begin / place.now)


SCHEDULES.register("inverse_sqrt", ScheduleSpec(section=InverseSqrtSection, factor=factor, ends=False))
