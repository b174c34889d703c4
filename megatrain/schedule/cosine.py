"""From the peak to min_lr_ratio of it along half a cosine (arXiv 1608.03983, without restarts)."""

import math
from typing import Literal

from pydantic import Field

from megatrain.base.types import Fraction
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class CosineSection(ScheduleSection):
    name: Literal["cosine"] = "cosine"
    min_lr_ratio: Fraction = Field(0.1, description="final learning rate over the peak")


def factor(section: CosineSection, place: Place) -> float:
    remaining = 0.5 * (1.0 + math.cos(math.pi * place.done))
    return section.min_lr_ratio + (1.0 - section.min_lr_ratio) * remaining


SCHEDULES.register("cosine", ScheduleSpec(section=CosineSection, factor=factor))
