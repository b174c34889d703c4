"""From the rate that another run had at a checkpoint to min_lr_ratio of the peak, over all that this run trains itself.

One long run at a stable rate, and from any of its checkpoints a short run that decays (arXiv 2405.18392, section 3).
"""

from typing import Literal

from pydantic import Field

from megatrain.base.types import Fraction, Positive
from megatrain.schedule.decay import REMAINING, Decay
from megatrain.schedule.registry import SCHEDULES, Place, ScheduleSection, ScheduleSpec


class CooldownSection(ScheduleSection):
    name: Literal["cooldown"] = "cooldown"
    start_lr_ratio: Positive = Field(
        1.0, description="learning rate where it begins, over the peak; --cooldown-from takes it from the other run"
    )
    decay: Decay = Field("sqrt", description="its shape; sqrt: 1 - √(part done)")
    min_lr_ratio: Fraction = Field(0.0, description="final learning rate over the peak")


def factor(section: CooldownSection, place: Place) -> float:
    done = min(1.0, max(0, place.now - place.branch) / max(1, place.end - place.branch))
    return section.min_lr_ratio + (section.start_lr_ratio - section.min_lr_ratio) * REMAINING[section.decay](done)


SCHEDULES.register("cooldown", ScheduleSpec(section=CooldownSection, factor=factor))
