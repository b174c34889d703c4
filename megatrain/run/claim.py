"""The fencing token: the ranks of an attempt know its index and token, and stop when another attempt has the run.

A lock or a heartbeat can only guess that a trainer is gone: it may have been suspended, or cut off from Slurm. So each
attempt writes a new token into attempts.json, and rank 0 looks there before it commits anything, while it holds the
lock under which the next attempt would be written.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from megatrain.base.errors import CheckpointError, MegatrainError, PreflightError
from megatrain.run.attempts import Attempt, ended, give_room, read_attempts, write_attempts
from megatrain.run.directory import RunDir
from megatrain.run.lock import locked

VARIABLE = "MEGATRAIN_ATTEMPT"  # in a rank's environment: its claim


class Claim(NamedTuple):
    """Which attempt of a run this is."""

    attempt: int  # its place in attempts.json
    token: str | None  # None: of a job script of before there were tokens

    def __str__(self) -> str:
        return str(self.attempt) if self.token is None else f"{self.attempt}:{self.token}"

    @classmethod
    def parse(cls, text: str) -> "Claim | None":
        index, _, token = text.partition(":")
        return cls(int(index), token or None) if index.isascii() and index.isdigit() and len(index) < 10 else None


def new_token() -> str:
    return secrets.token_hex(8)


def own_claim() -> Claim | None:
    """Of this process; None for a rank that was not started as an attempt, such as by torchrun."""
    return Claim.parse(os.environ.get(VARIABLE, ""))


def superseded(run: RunDir, claim: Claim | None) -> str | None:
    """Who has the run instead, in words; None while the claim holds, and where nothing was claimed.

    A history that is absent or cannot be read names nobody else: no attempt can be written into one.
    """
    if claim is None:
        return None
    try:
        attempts = read_attempts(run)
    except MegatrainError:
        return None
    if not attempts:
        return None
    last = attempts[-1]
    if not _is_of(last, len(attempts) - 1, claim):
        who = f"job {last.job}" if last.job else f"process {last.pid} on {last.host}"
        return f"{who} has started a newer attempt"
    return "this attempt was taken for lost" if last.ended is not None else None


def demand_current(run: RunDir, claim: Claim | None = None) -> None:
    """Raise PreflightError when another attempt has the run, CheckpointError when its folder is gone."""
    if not run.path.is_dir():
        raise CheckpointError(f"{run}: is gone: it was moved or deleted while it was trained")
    if why := superseded(run, claim or own_claim()):
        raise PreflightError(f"{run}: {why}; this trainer stops, and writes nothing more")


@contextmanager
def current(run: RunDir) -> Iterator[None]:
    """Around what only the run's trainer may do: no other attempt can claim the run in the meantime.

    Raises:
        PreflightError: another attempt has the run.
        CheckpointError: the run's folder is gone.
    """
    demand_current(run)
    with ExitStack() as stack:
        if own_claim() is not None:
            with suppress(PreflightError):  # a lock that fails must not cost a checkpoint; the token is looked at
                stack.enter_context(locked(run))
            demand_current(run)
        yield


def close_attempt(run: RunDir, claim: Claim, **ending: Any) -> Attempt:
    """Record how an attempt ended, unless another one has closed it as lost; the time, unless given, is now.

    Raises:
        PreflightError: the history cannot be read or written, or no longer holds this attempt as one that runs.
    """
    if not run.attempts.is_file():
        raise PreflightError(f"{run.attempts}: is gone: the run's folder was moved or deleted while it was trained")
    with locked(run):
        attempts = read_attempts(run)
        if claim.attempt >= len(attempts) or not _is_of(attempts[claim.attempt], claim.attempt, claim):
            raise PreflightError(f"{run.attempts}: no longer holds this attempt: another one has the run")
        if attempts[claim.attempt].ended is not None:
            raise PreflightError(f"{run.attempts}: another attempt has taken this one for lost")
        attempts[claim.attempt] = ended(run, attempts[claim.attempt], **ending)
        write_attempts(run, attempts)
        give_room(run)
        return attempts[claim.attempt]


def _is_of(attempt: Attempt, index: int, claim: Claim) -> bool:
    return attempt.token == claim.token if claim.token is not None else index == claim.attempt
