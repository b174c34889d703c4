"""`evaluation:` when validation data is read, and how much."""

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count


class EvaluationSection(Section):
    interval_steps: Count = 500
    sequences: Count = Field(256, description="validation sequences an evaluation reads, at most")
