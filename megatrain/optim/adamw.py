"""AdamW (arXiv 1711.05101), fused."""

from typing import Annotated, Any, Literal

from pydantic import Field

from megatrain.base.section import FIXED
from megatrain.base.types import Beta, Positive
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec


class AdamWSection(OptimizerSection):
    name: Annotated[Literal["adamw"], FIXED] = "adamw"
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    eps: Positive = 1e-8


def arguments(section: AdamWSection) -> dict[str, Any]:
    return {"betas": section.betas, "eps": section.eps, "fused": True}


OPTIMIZERS.register(
    "adamw",
    OptimizerSpec(
        section=AdamWSection,
        optimizer="torch.optim:AdamW",
        arguments=arguments,
        state=("exp_avg", "exp_avg_sq"),
        has_mup_rates=True,
    ),
)
