"""`monitor:` what is reported, and when a rank counts as hung."""

from typing import Annotated

from pydantic import AfterValidator, Field

from megatrain.base.errors import ConfigError
from megatrain.base.section import Section
from megatrain.base.types import Count
from megatrain.monitor.sinks.registry import SINKS


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            SINKS.get(name)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return names


class MonitorSection(Section):
    log_interval_steps: Count = 10
    sinks: Annotated[tuple[str, ...], Field(strict=False, max_length=32), AfterValidator(_known)] = Field(
        ("tensorboard",), description="where numbers go beside the console and metrics.jsonl"
    )
    hang_timeout_seconds: Count = Field(
        600, le=10**6, description="no step, evaluation batch or checkpoint in so long: the rank hangs"
    )
    health_check: bool = Field(
        True, description="before the first step, name GPUs, links and clocks that have problems"
    )
