"""Lion (arXiv 2302.06675): half of Adam's state."""

from typing import Any, Literal

from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec


class LionSection(OptimizerSection):
    name: Literal["toy_lion"] = "toy_lion"
    learning_rate: float = 1e-3
    momentum: float = 0.9


def arguments(section: LionSection) -> dict[str, Any]:
    return {"momentum": section.momentum}


OPTIMIZERS.register(
    "toy_lion",
    OptimizerSpec(section=LionSection, optimizer="toy.lion:Lion", arguments=arguments, state=("exp_avg",)),
)
