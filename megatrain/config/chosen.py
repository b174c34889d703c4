"""The sections whose class depends on a name: `model`, `optimizer` and `schedule`."""

from typing import TYPE_CHECKING

from megatrain.base.section import chosen
from megatrain.config import builtin  # noqa: F401 - registers what can be chosen
from megatrain.model.architecture import FAMILIES, ModelSection
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection
from megatrain.schedule.registry import SCHEDULES, ScheduleSection

if TYPE_CHECKING:
    AnyModel = ModelSection
    AnyOptimizer = OptimizerSection
    AnySchedule = ScheduleSection
else:
    AnyModel = chosen(ModelSection, FAMILIES, key="family", default="llama")
    AnyOptimizer = chosen(OptimizerSection, OPTIMIZERS, key="name", default="adamw")
    AnySchedule = chosen(ScheduleSection, SCHEDULES, key="name", default="cosine")
