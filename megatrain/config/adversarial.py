"""`finetune.adversarial:` training on embeddings that are perturbed against the model."""

from typing import Literal

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count, Positive


class AdversarialSection(Section):
    method: Literal["fgm", "pgd"] = Field(
        "fgm", description="fgm: one step along the gradient (arXiv 1605.07725); pgd: several (arXiv 1706.06083)"
    )
    epsilon: Positive = Field(1.0, description="norm of the perturbation of an example's embedded tokens, at most")
    steps: Count | None = Field(None, le=100, description="of pgd; default: 3")
    step_size: Positive | None = Field(None, description="of pgd: norm of a step; default: 0.3 * epsilon")
    weight: Positive = Field(1.0, description="of the loss of perturbed examples, which is added to that of clean ones")

    @property
    def ascents(self) -> int:
        """Steps along a gradient in each micro-batch."""
        return 1 if self.method == "fgm" else self.steps or 3

    @property
    def ascent_size(self) -> float:
        if self.method == "fgm":
            return self.epsilon
        return 0.3 * self.epsilon if self.step_size is None else self.step_size
