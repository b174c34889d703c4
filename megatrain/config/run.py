"""`run:` where a run lies, and what it is drawn from."""

from typing import Annotated

from pydantic import Field

from megatrain.base.section import FIXED, Section
from megatrain.base.types import Name, NonNegative, Path


class RunSection(Section):
    name: Name = Field(description="the run's folder is run.directory/run.name")
    directory: Path = Field("runs", description="the folder that holds all runs")
    seed: Annotated[NonNegative, FIXED] = Field(1337, description="seeds the weights and the order of the data")
