"""AdamW whose decay draws weights to those that a fine-tuning started from, instead of to zero: L2-SP
(arXiv 1802.01483), decoupled. The start's weights are a part of its state: sharded, saved and resumed with it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from megatrain.base.section import FIXED
from megatrain.base.types import Beta, Positive
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec


class AdamWL2SPSection(OptimizerSection):
    name: Annotated[Literal["adamw_l2sp"], FIXED] = "adamw_l2sp"
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="of matrices, not of norms: toward the weights that the run started from"
    )
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    eps: Positive = 1e-8


def arguments(section: AdamWL2SPSection) -> dict[str, Any]:
    return {"betas": section.betas, "eps": section.eps, "fused": True}


OPTIMIZERS.register(
    "adamw_l2sp",
    OptimizerSpec(
        section=AdamWL2SPSection,
        optimizer="megatrain.optim.adamw_l2sp.optimizer:AdamWL2SP",
        arguments=arguments,
        state=("exp_avg", "exp_avg_sq", "start"),
        start_state="start",
        has_mup_rates=True,
    ),
)
