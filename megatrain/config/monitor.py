"""`monitor:` what is reported, and when a rank counts as hung."""

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count


class MonitorSection(Section):
    log_interval_steps: Count = 10
    tensorboard: bool = True
    hang_timeout_seconds: Count = Field(
        600, le=10**6, description="no step, evaluation batch or checkpoint in so long: the rank hangs"
    )
    health_check: bool = Field(
        True, description="before the first step, name GPUs, links and clocks that have problems"
    )
