"""`training.early_stopping`: when a run ends before its length, by what its evaluations measure."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count

_LOWER_IS_BETTER = ("loss", "perplexity", "mse", "mae", "bits_per_byte")  # what names of such metrics end with


class EarlyStoppingSection(Section):
    metric: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "validation_loss", description="of an evaluation, by its name in metrics.jsonl"
    )
    patience: Count = Field(3, description="the run ends after so many evaluations without a new best")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="what is better by no more is no new best")
    mode: Literal["auto", "min", "max"] = Field(
        "auto", description="whether less or more is better; auto: less of losses, errors and perplexity, else more"
    )

    @property
    def sign(self) -> float:
        """What makes a value more, where it is better."""
        lower = self.mode == "min" or (self.mode == "auto" and self.metric.endswith(_LOWER_IS_BETTER))
        return -1.0 if lower else 1.0
