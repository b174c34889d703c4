"""RUN/heartbeat.json: where the running attempt is; rewritten by rank 0 every few seconds."""

import os
import time

from pydantic import Field

from megatrain.base.errors import PreflightError
from megatrain.base.files import read_model
from megatrain.run.claim import Claim, own_claim
from megatrain.run.directory import RunDir
from megatrain.run.record import Count, Name, Record, Seconds, Text, write_record

FRESH_SECONDS = 60.0
WATCH_SECONDS = 15.0  # three heartbeats
_POLL_SECONDS = 0.5
_LIMIT = 1 << 20  # bytes


class Heartbeat(Record):
    time: Seconds
    attempt: int | None = Field(ge=0, le=2**31)
    token: Name | None = None
    sequence: Count = 0  # of the heartbeats of one rank 0
    step: Count
    activity: Text


def read_heartbeat(run: RunDir) -> Heartbeat | None:
    """None where there is none, or none that can be read: a trainer that lives writes another at once."""
    if not os.path.lexists(run.heartbeat):
        return None
    try:
        return read_model(run.heartbeat, Heartbeat, error=PreflightError, limit=_LIMIT)
    except PreflightError:
        return None


def write_heartbeat(run: RunDir, *, step: int, activity: str, sequence: int = 0, claim: Claim | None = None) -> None:
    """Raises PreflightError where it cannot be written. A folder that is gone is not made again."""
    claim = claim or own_claim()
    if not run.path.is_dir():
        return
    beat = Heartbeat(
        time=time.time(),
        attempt=claim.attempt if claim else None,
        token=claim.token if claim else None,
        sequence=sequence,
        step=step,
        activity=activity,
    )
    write_record(run.heartbeat, beat.fields())


def beats(run: RunDir, attempt: int, *, watch: bool = True) -> bool:
    """Whether an attempt's rank 0 lives, as far as its heartbeat tells.

    It does when the last one is fresh. A clock that differs by more than FRESH_SECONDS, in either direction, makes it
    look old: so the file is then watched for another one.

    Args:
        watch: False for a glance, which takes no time.
    """
    first = read_heartbeat(run)
    if first is not None and first.attempt == attempt and abs(time.time() - first.time) < FRESH_SECONDS:
        return True
    deadline = time.monotonic() + WATCH_SECONDS
    while watch and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = read_heartbeat(run)
        if now is not None and now.attempt == attempt and now != first:
            return True
    return False
