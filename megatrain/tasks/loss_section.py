"""`task:` of what is trained by a cross-entropy over the vocabulary: its loss. Without torch."""

from typing import Annotated

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.tasks.registry import TaskSection


class TokenLossSection(TaskSection):
    z_loss: Annotated[float, Field(ge=0, le=1), REPORTED] = Field(
        0.0, description="factor of logsumexp(logits)² in the loss, such as 1e-4: keeps logits from drifting"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1), REPORTED] = Field(
        0.0, description="part of each target that is spread evenly over the vocabulary"
    )
