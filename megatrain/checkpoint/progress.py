"""How far a run is, read from its checkpoints. No torch: job scripts and `megatrain status` ask this."""

from itertools import pairwise
from typing import Any

from megatrain.base.errors import CheckpointError
from megatrain.base.progress import Progress
from megatrain.checkpoint.best import is_over
from megatrain.checkpoint.state import STATE, read_counts
from megatrain.config import Config
from megatrain.run.branch import origin
from megatrain.run.directory import RunDir


def progress_of(state: Any, where: object) -> Progress:
    """What the content of a checkpoint's state.json says.

    Raises:
        CheckpointError: it says nothing that could be so; names `where`.
    """
    try:
        step, samples = state["step"], state["loader"]["position"]
        batches = tuple((first, begun, size) for first, begun, size in state.get("batches", ()))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CheckpointError(f"{where}: does not say how far the run is; the checkpoint is damaged") from None
    counts = [step, samples, *(count for batch in batches for count in batch)]
    if not all(type(count) is int and 0 <= count <= 2**63 for count in counts):
        raise CheckpointError(f"{where}: step {step!r}, position {samples!r}: are no counts; the checkpoint is damaged")
    ends = [*batches, (step, samples, 1)]
    for (first, begun, size), (last, ended, _) in pairwise(ends):
        if size < 1 or last <= first or ended - begun != (last - first) * size:
            raise CheckpointError(f"{where}: batches {batches}: do not lead to sample {samples:,} at step {step:,}")
    return Progress(step, samples, batches)


def saved_progress(run: RunDir, *, step: int | None = None) -> Progress:
    """Of the newest checkpoint whose state can be read, or of that of `step`; the start of a run where there is none.

    Its bytes are not verified: that takes minutes, and whoever resumes does it.
    """
    for saved in reversed(run.steps()):
        if step not in (None, saved):
            continue
        folder = run.step(saved)
        try:
            return progress_of(read_counts(folder).facts(), folder / STATE)
        except CheckpointError:
            continue
    return Progress()


def start_progress(run: RunDir, config: Config, *, step: int | None = None) -> Progress:
    """As `saved_progress`; of a run that is about to go on from another's checkpoint, where that is."""
    source, at = origin(run, config)
    return saved_progress(source, step=step if at is None else at)


def is_complete(run: RunDir, config: Config) -> bool:
    """Whether the run has a checkpoint of its end: all the steps, or all the tokens, that were asked for; or where
    early stopping ended it."""
    progress = saved_progress(run)
    if progress.step == 0:
        return False
    return config.steps_left(progress) == 0 or _ended_early(run, config, progress.step)


def _ended_early(run: RunDir, config: Config, step: int) -> bool:
    section = config.training.early_stopping
    return section is not None and is_over(section, read_counts(run.step(step)).early_stopping)
