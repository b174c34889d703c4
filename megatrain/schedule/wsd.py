"""Warm-up, stable, decay: the peak, and at the end of the run a decay to min_lr_ratio of it (arXiv 2404.06395).

The shapes are those of arXiv 2405.18392, which found 1−√ the best of them.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.types import Fraction
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec

# part of the decay that is done -> part of the way from the peak that is left
_REMAINING: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done: 1.0 - math.sqrt(done),
}


class WSDSection(ScheduleSection):
    name: Literal["wsd"] = "wsd"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="part of what comes after warm-up, at the end of the run, in which the rate decays"
    )
    decay: Literal["linear", "cosine", "sqrt"] = Field("sqrt", description="its shape; sqrt: 1 - √(part done)")
    min_lr_ratio: Fraction = Field(0.0, description="final learning rate over the peak")


def factor(section: WSDSection, place: Place) -> float:
    length = max(1, round(section.decay_fraction * (place.end - place.begin)))  # whole: a root magnifies roundings
    done = min(1.0, max(0, place.now - (place.end - length)) / length)
    return section.min_lr_ratio + (1.0 - section.min_lr_ratio) * _REMAINING[section.decay](done)


SCHEDULES.register("wsd", ScheduleSpec(section=WSDSection, factor=factor))
