"""The starts of a run: who trains it, from which step to which, and how each ended. Free of torch.

RUN/attempts.json     a list, an object a start; written by who starts the ranks
RUN/heartbeat.json    where the running attempt is; rewritten by rank 0 every few seconds
RUN/outcomes/N.json   of attempt N, the first rank that did not simply finish: which, where and why
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from megatrain.errors import ExitCode, PreflightError
from megatrain.run_dir import RunDir, write_json

VARIABLE = "MEGATRAIN_ATTEMPT"  # in a rank's environment: the index of its attempt in attempts.json
_LOCK_SECONDS = 30.0  # how long a lock that nobody gives back is respected


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of a run. Times are seconds since 1970; steps are those of checkpoints."""

    job: str | None  # Slurm's job id; None: started by hand
    host: str  # where the ranks were started from
    pid: int  # of the process that started them
    nodes: list[str] = field(default_factory=list)
    ranks: int
    started: float
    start_step: int
    ended: float | None = None
    end_step: int | None = None
    exit_code: int | None = None  # None although it ended: lost, as with a node
    failed_nodes: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def progressed(self) -> bool:
        return self.end_step is not None and self.end_step > self.start_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    time: float
    attempt: int | None
    step: int
    activity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, as the first rank saw it that did not simply finish."""

    exit_code: int
    error: str  # a line
    rank: int
    host: str
    time: float


def read_attempts(run: RunDir) -> list[Attempt]:
    """Oldest first; none where nothing was started. A file that is not ours counts as none."""
    try:
        return [Attempt(**item) for item in json.loads(run.attempts.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def write_attempts(run: RunDir, attempts: list[Attempt]) -> None:
    write_json(run.attempts, [asdict(attempt) for attempt in attempts])


def close_attempt(run: RunDir, index: int, **changes: Any) -> Attempt:
    """Enter how an attempt ended; the time, unless given, is now."""
    attempts = read_attempts(run)
    ended = {"ended": time.time(), "end_step": newest_step(run)}
    attempts[index] = replace(attempts[index], **ended | changes)
    write_attempts(run, attempts)
    return attempts[index]


def newest_step(run: RunDir) -> int:
    """Of the checkpoints; 0 where there is none."""
    return max(run.steps(), default=0)


def fruitless(attempts: list[Attempt], since: float = 0.0) -> int:
    """How many of the last attempts in a row ended without a new checkpoint."""
    count = 0
    for attempt in reversed([attempt for attempt in attempts if attempt.started >= since]):
        if attempt.ended is not None and attempt.progressed:
            break
        count += attempt.ended is not None
    return count


def unreliable_nodes(attempts: list[Attempt], since: float = 0.0) -> list[str]:
    """Nodes that were named in two failures or more."""
    failures = [node for attempt in attempts if attempt.started >= since for node in attempt.failed_nodes]
    return sorted({node for node in failures if failures.count(node) >= 2})


def read_heartbeat(run: RunDir) -> Heartbeat | None:
    try:
        return Heartbeat(**json.loads(run.heartbeat.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_heartbeat(run: RunDir, *, step: int, activity: str) -> None:
    beat = Heartbeat(time=time.time(), attempt=_own_attempt(), step=step, activity=activity)
    write_json(run.heartbeat, asdict(beat))


def record_outcome(run: RunDir, exit_code: int, error: str) -> None:
    """Say how this rank ends, unless another one of its attempt was first. Never raises: a rank is dying."""
    attempt = _own_attempt()
    if attempt is None:
        return
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    outcome = Outcome(exit_code=exit_code, error=error, rank=rank, host=host, time=time.time())
    with suppress(OSError):
        run.outcomes.mkdir(exist_ok=True)
        with open(run.outcomes / f"{attempt}.json", "x", encoding="utf-8") as file:  # x: the first one wins
            file.write(json.dumps(asdict(outcome)) + "\n")


def read_outcome(run: RunDir, attempt: int) -> Outcome | None:
    try:
        return Outcome(**json.loads((run.outcomes / f"{attempt}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def last_error(run: RunDir) -> str | None:
    """What ended the last attempt, where it was an error."""
    attempts = read_attempts(run)
    if not attempts:
        return None
    outcome = read_outcome(run, len(attempts) - 1)
    if outcome is not None and outcome.exit_code != ExitCode.STOPPED:
        return f"rank {outcome.rank} on {outcome.host}: {outcome.error}"
    return attempts[-1].error


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """One at a time, over all nodes that see the run's folder: making a folder is atomic, also over NFS.

    Raises:
        PreflightError: another process holds it for longer than anyone should.
    """
    lock = run.path / ".attempts.lock"
    deadline = time.monotonic() + 2 * _LOCK_SECONDS
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError:
            with suppress(OSError):
                if time.time() - lock.stat().st_mtime > _LOCK_SECONDS:  # its holder died
                    _remove(lock)
        if time.monotonic() > deadline:
            raise PreflightError(f"{lock}: held by another start of this run. Remove it if there is none.")
        time.sleep(0.05)
    try:
        yield
    finally:
        _remove(lock)


def _remove(lock: Path) -> None:
    shutil.rmtree(lock, ignore_errors=True)


def _own_attempt() -> int | None:
    value = os.environ.get(VARIABLE, "")
    return int(value) if value.isdecimal() else None
