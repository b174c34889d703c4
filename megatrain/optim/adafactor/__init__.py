"""Adafactor (arXiv 1804.04235): of a matrix's second moment, a mean of each row and of each column. No momentum.

An update is as large as `clip_threshold` at most, in its root mean square over the whole weight.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from megatrain.base.section import FIXED
from megatrain.base.types import Positive
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec


class AdafactorSection(OptimizerSection):
    name: Annotated[Literal["adafactor"], FIXED] = "adafactor"
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="of the moments: 1 - step^-decay_rate of them is kept"
    )
    eps: Positive = Field(1e-30, description="added to squares of gradients")
    clip_threshold: Positive = Field(1.0, description="root mean square of a weight's update, at most, before its rate")
    scale_parameter: bool = Field(
        False, description="a weight's rate is the schedule's times its own root mean square, 0.001 at least"
    )
    relative_step: bool = Field(False, description="the rate is 1/√step at most")


def arguments(section: AdafactorSection) -> dict[str, Any]:
    names = ("decay_rate", "eps", "clip_threshold", "scale_parameter", "relative_step")
    return {name: getattr(section, name) for name in names}


OPTIMIZERS.register(
    "adafactor",
    OptimizerSpec(
        section=AdafactorSection,
        optimizer="megatrain.optim.adafactor.optimizer:Adafactor",
        arguments=arguments,
        state=("exp_avg_sq",),
        factored=("exp_avg_sq_row", "exp_avg_sq_col"),
    ),
)
