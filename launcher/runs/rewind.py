"""Take a run back to a step, before it is submitted."""

from megatrain.checkpoint.rewind import SetAside, go_back
from megatrain.run.directory import RunDir
from megatrain.run.lock import locked


def rewind_run(run: RunDir, resume: str) -> SetAside | None:
    """What --resume asks for, done now: a job resumes from the newest checkpoint, however often it is requeued.

    Raises:
        CheckpointError: as `go_back`.
        PreflightError: the run has been taken in the meantime.
    """
    with locked(run):
        return go_back(run, resume)
