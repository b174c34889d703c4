"""What a sink is."""

from collections.abc import Mapping
from typing import Protocol

from megatrain.base.registry import load_object
from megatrain.config.resolved import ResolvedRun
from megatrain.monitor.sinks.registry import SINKS
from megatrain.run.directory import RunDir


class Sink(Protocol):
    """Called as Sink(run, config, resume_step=…): optimizer steps done before this start, whose values it may have of
    an earlier start, and whose later ones a resumed run replays; 0 for a run from its beginning.

    Raises (whenever it is called):
        PreflightError: it cannot write.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of registered metrics after `step` optimizer steps."""
        ...

    def close(self) -> None: ...


def open_sinks(run: RunDir, config: ResolvedRun, *, resume_step: int) -> list[Sink]:
    """Those that the run names, on rank 0."""
    return [load_object(SINKS.get(name).sink)(run, config, resume_step=resume_step) for name in config.monitor.sinks]
