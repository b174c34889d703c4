"""`continued:` of a pretraining that goes on from another run's weights, on other data."""

from typing import Annotated

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Path


class ContinuedSection(Section):
    """Model and tokenizer are the base's; optimizer, schedule and data begin anew."""

    base: Path = Field(description="a run of megatrain, for its newest checkpoint, or one of its checkpoints")
    replay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the samples that are from the base's own data.train, so that it is not forgotten"
    )
