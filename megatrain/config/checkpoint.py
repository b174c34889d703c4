"""`checkpoint:` when a run is saved, and how many checkpoints are kept."""

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count


class CheckpointSection(Section):
    interval_steps: Count = 1000
    keep_last: Count = Field(3, description="older checkpoints are deleted")
