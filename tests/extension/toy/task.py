"""Next tokens behind inputs of which some are masked: a task with a batch, a field and metrics of its own."""

from typing import Literal

from megatrain.tasks.registry import TASKS, TaskSection, TaskSpec


class MaskedInputsSection(TaskSection):
    name: Literal["toy_masked_inputs"] = "toy_masked_inputs"
    every: int = 5


TASKS.register(
    "toy_masked_inputs",
    TaskSpec(section=MaskedInputsSection, task="toy.masked_inputs:MaskedInputs", trains="pretrain"),
)
