"""A run that goes on from a checkpoint of another: `run.branch` of its configuration."""

from pathlib import Path

from megatrain.config import Config
from megatrain.run.directory import RunDir, locate


def origin(run: RunDir, config: Config) -> tuple[RunDir, int | None]:
    """The run whose checkpoint the next start of `run` reads, and the step of it where that is another run.

    It is another one until the checkpoint has become the run's own first.
    """
    branch = config.run.branch
    if branch is None or run.steps():
        return run, None
    return locate(Path(branch.checkpoint))[0], branch.step
