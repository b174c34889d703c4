"""Lion (arXiv 2302.06675): the sign of a momentum, half of Adam's state. Its rate is 3 to 10 times below Adam's, its
decay as many times above it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from megatrain.base.section import FIXED
from megatrain.base.types import Beta, Positive
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec


class LionSection(OptimizerSection):
    name: Annotated[Literal["lion"], FIXED] = "lion"
    learning_rate: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = Field(1.0, description="applied to matrices, not to norms")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.99), description="how much momentum is in an update, and how much of it is kept for the next"
    )


def arguments(section: LionSection) -> dict[str, Any]:
    return {"betas": section.betas}


OPTIMIZERS.register(
    "lion",
    OptimizerSpec(
        section=LionSection, optimizer="megatrain.optim.lion.optimizer:Lion", arguments=arguments, state=("exp_avg",)
    ),
)
