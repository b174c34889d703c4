"""RUN/attempts.json: a list, an object per attempt, oldest first. Written by who starts the ranks."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, RootModel

from megatrain.base.errors import PreflightError
from megatrain.base.files import read_model
from megatrain.run.directory import RunDir
from megatrain.run.record import Code, Count, JobId, Name, Record, Seconds, Text, write_record

_SPARE_BYTES = 1 << 14


class Attempt(Record):
    """One attempt to train a run: from a start of its ranks to their end. Steps are those of checkpoints."""

    job: JobId | None  # Slurm's; None: started by hand
    host: Name  # where the ranks were started from
    pid: int = Field(ge=1, le=2**22)  # of the process that started them
    token: Name | None = None  # of this attempt alone: the ranks carry it, and stop when another one has the run
    boot: Name | None = None  # boot id of the host, pid namespace and start time of the process, in clock ticks since
    pid_namespace: Name | None = None  # boot: together with the pid they name one process for good
    start_ticks: Count | None = None
    folder: Text | None = None  # the run's, absolute
    nodes: list[Name] = Field(default_factory=list)
    ranks: int = Field(ge=0, le=10**8)
    started: Seconds
    start_step: Count
    ended: Seconds | None = None
    end_step: Count | None = None
    exit_code: Code | None = None  # None although it ended: lost, as with a node
    failed_nodes: list[Name] = Field(default_factory=list)
    error: Text | None = None

    @property
    def progressed(self) -> bool:
        return self.end_step is not None and self.end_step > self.start_step


class _History(RootModel[Annotated[list[Attempt], Field(fail_fast=True)]]):
    pass


def read_attempts(run: RunDir) -> list[Attempt]:
    """Oldest first; none where nothing was started.

    Raises:
        PreflightError: the file is there, and is not a history of attempts. Who trains the run cannot be told then.
    """
    if not os.path.lexists(run.attempts):
        return []
    try:
        return read_model(run.attempts, _History, error=PreflightError).root
    except PreflightError as error:
        fix = "restore it, or, when nothing trains the run, move it away"
        raise PreflightError(f"{error}. It is the history of the run's attempts: {fix}") from None


def write_attempts(run: RunDir, attempts: list[Attempt]) -> None:
    """On a full disk, in the room that `keep_room` kept. Raises PreflightError where it cannot be written."""
    history = [attempt.fields() for attempt in attempts]
    try:
        write_record(run.attempts, history)
    except PreflightError:
        if not give_room(run):
            raise
        write_record(run.attempts, history)


def keep_room(run: RunDir) -> None:
    """Keep room on the disk in which the end of the running attempt can be entered. Raises OSError."""
    size = max(_SPARE_BYTES, 2 * run.attempts.stat().st_size)
    _spare(run).write_bytes(os.urandom(size))  # random, for file systems that compress


def give_room(run: RunDir) -> bool:
    """Whether there was some."""
    try:
        _spare(run).unlink()
    except OSError:
        return False
    return True


def _spare(run: RunDir) -> Path:
    return run.path / ".attempts.spare"


def ended(run: RunDir, attempt: Attempt, **ending: Any) -> Attempt:
    """The attempt, closed, with the newest checkpoint as its last step."""
    return Attempt(**attempt.fields() | {"ended": time.time(), "end_step": newest_step(run)} | ending)


def newest_step(run: RunDir) -> int:
    """Of the checkpoints; 0 where there is none."""
    return max(run.steps(), default=0)


def attempts_without_progress(attempts: list[Attempt], since: float = 0.0) -> int:
    """How many of the last attempts in a row ended without a new checkpoint."""
    count = 0
    for attempt in reversed([attempt for attempt in attempts if attempt.started >= since]):
        if attempt.ended is not None and attempt.progressed:
            break
        count += attempt.ended is not None
    return count


def unreliable_nodes(attempts: list[Attempt], since: float = 0.0) -> list[str]:
    """Nodes that were named in two failures or more."""
    failures = Counter(node for attempt in attempts if attempt.started >= since for node in attempt.failed_nodes)
    return sorted(node for node, count in failures.items() if count >= 2)
