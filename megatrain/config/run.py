"""`run:` where a run lies, and what it is drawn from."""

from typing import Annotated

from pydantic import Field

from megatrain.base.section import FIXED, Section
from megatrain.base.types import Count, Name, NonNegative, Path


class BranchSection(Section):
    """A checkpoint of another run that this one goes on from: its weights, optimizer state and place in the data."""

    checkpoint: Path = Field(description="its folder; it becomes this run's first checkpoint")
    step: Count = Field(description="optimizer steps that the other run had done")
    samples: NonNegative = Field(description="samples that it had consumed")


class RunSection(Section):
    name: Name = Field(description="the run's folder is run.directory/run.name")
    directory: Path = Field("runs", description="the folder that holds all runs")
    seed: Annotated[NonNegative, FIXED] = Field(1337, description="seeds the weights and the order of the data")
    branch: Annotated[BranchSection | None, FIXED] = Field(
        None, description="the other run's checkpoint that this one goes on from; --cooldown-from sets it"
    )
