"""What an optimizer registers, without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from megatrain.base.registry import Registry
from megatrain.base.section import FIXED, Section
from megatrain.base.types import Positive


class OptimizerSection(Section):
    """What every optimizer's section has."""

    name: Annotated[str, FIXED] = "adamw"  # its state is in the checkpoint
    learning_rate: Positive = 6e-4
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="applied to matrices, not to norms")
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(1.0, description="maximum gradient norm; 0 turns it off")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer, as the planner, the trainer and checkpoints know it.

    Attributes:
        section: its `optimizer:` section.
        optimizer: "package.module:Class" of a torch.optim.Optimizer. It is given parameter groups, each with `params`,
            `weight_decay` and `lr_scale`, by which the schedule's rate is multiplied, and lr=0.0.
        arguments: the section -> its further keyword arguments.
        state: names of its state tensors, each fp32 and of a parameter's shape. Other state tensors are refused where a
            run starts, for no checkpoint could hold them.
    """

    section: type[OptimizerSection]
    optimizer: str
    arguments: Callable[[Any], dict[str, Any]]
    state: tuple[str, ...]

    @property
    def state_bytes(self) -> int:
        """Per parameter, without the fp32 weight."""
        return 4 * len(self.state)


OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer")
