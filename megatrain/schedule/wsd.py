"""Warm-up, stable, decay: the peak, and at the end of the run a decay to min_lr_ratio of it (arXiv 2404.06395).

Its shapes are in decay.py.
"""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.types import Fraction
from megatrain.schedule.decay import REMAINING, Decay
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class WSDSection(ScheduleSection):
    name: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="part of what comes after warm-up, at the end of the run, in which the rate decays"
    )
    decay: Decay = Field("sqrt", description="its shape; sqrt: 1 - √(part done)")
    min_lr_ratio: Fraction = Field(0.0, description="final learning rate over the peak")


def factor(section: WSDSection, place: Place) -> float:
    length = max(1, round(section.decay_fraction * (place.end - place.begin)))  # whole: a root magnifies roundings
    done = min(1.0, max(0, place.now - (place.end - length)) / length)
    return section.min_lr_ratio + (1.0 - section.min_lr_ratio) * REMAINING[section.decay](done)


SCHEDULES.register("wsd", ScheduleSpec(section=WSDSection, factor=factor))
