"""The sections whose class depends on a name: `model`, `optimizer`, `schedule` and `task`."""

from typing import TYPE_CHECKING

from megatrain.base.section import chosen
from megatrain.config import builtin  # noqa: F401 - registers what can be chosen
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection
from megatrain.schedule.registry import SCHEDULES, ScheduleSection
from megatrain.tasks.registry import TASKS, TaskSection

if TYPE_CHECKING:
    AnyModel = ModelSection
    AnyOptimizer = OptimizerSection
    AnySchedule = ScheduleSection
    AnyPretrainTask = TaskSection
    AnyFinetuneTask = TaskSection
else:
    AnyModel = chosen(ModelSection, FAMILIES, key="family", default="llama")
    AnyOptimizer = chosen(OptimizerSection, OPTIMIZERS, key="name", default="adamw")
    AnySchedule = chosen(ScheduleSection, SCHEDULES, key="name", default="cosine")
    AnyPretrainTask = chosen(
        TaskSection, TASKS, key="name", default="pretrain_lm", only=lambda spec: spec.trains == "pretrain"
    )
    AnyFinetuneTask = chosen(TaskSection, TASKS, key="name", default="sft", only=lambda spec: spec.trains == "finetune")
