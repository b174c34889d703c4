"""Claim a run for the ranks that start now, as a job or by hand; exactly one attempt has it at a time.

Slurm, or another machine's heartbeat, is asked before any lock is taken: it may need minutes to answer. What was asked
about is then looked at once more, with the lock held.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from launcher.runs.owner import living_owner
from launcher.slurm import commands
from megatrain.base.errors import ExitCode, MegatrainError, PreflightError
from megatrain.base.files import parse_model, reason
from megatrain.base.terminal import complain, copyable, say
from megatrain.checkpoint.rewind import go_back
from megatrain.run.attempts import Attempt, ended, keep_room, newest_step, read_attempts, write_attempts
from megatrain.run.claim import Claim, close_attempt, new_token
from megatrain.run.directory import RunDir, parse_resume
from megatrain.run.heartbeat import read_heartbeat, write_heartbeat
from megatrain.run.launchers import identity
from megatrain.run.lock import LockHeldError, launcher_lock, locked
from megatrain.run.outcomes import Outcome, read_outcome

_TRIES = 5  # to claim a run whose history changes while its owner is asked about


class _Owner(NamedTuple):
    """What was found out of the last attempt, without a lock."""

    attempt: Attempt | None  # that was open
    lives: str | None  # who trains the run, in words
    down: list[str]  # of its nodes, those that Slurm holds for unusable


@contextmanager
def claimed(
    run: RunDir,
    *,
    ranks: int,
    nodes: list[str],
    job: str | None = None,
    admit: Callable[[list[Attempt]], None] | None = None,
    resume: str = "auto",
) -> Iterator[Claim]:
    """Within the block this process is the run's launcher: no other can claim it, whatever the history says.

    Args:
        resume: what the ranks will be told. `never` starts over here, before the history gets another attempt.
        job: Slurm's, which keeps the claim after the block, until it has ended.
        admit: given the history, with what was lost closed; raises where this attempt must not be.

    Raises:
        PreflightError: somebody else trains it, or its folder cannot be written.
    """
    for _ in range(_TRIES):
        owner = _find_owner(run, job)
        with _launcher_lock(run, owner):
            with locked(run):
                attempts = read_attempts(run)
                if _open_attempt(attempts) != owner.attempt:
                    continue  # another attempt came in between
                wanted = parse_resume(resume)
                if wanted == "never" and (moved := go_back(run, resume)):
                    say(f"megatrain: {moved}", flush=True)
                    attempts, owner = [], _Owner(None, None, [])
                start_step = wanted if isinstance(wanted, int) else newest_step(run)
                claim = _write_claim(
                    run, attempts, owner, start_step=start_step, ranks=ranks, nodes=nodes, job=job, admit=admit
                )
            yield claim
            return
    raise PreflightError(f"{run}: is being started by others. See by whom: megatrain status {copyable(run)}")


def attempted(run: RunDir, ranks: int, nodes: list[str], go: Callable[[Claim], int], *, resume: str = "auto") -> int:
    """An attempt without Slurm: claim the run, `go(claim)`, and close the attempt with the exit code that this returns.

    A history that cannot be written any more is said, and changes no exit code.

    Raises:
        PreflightError: somebody else trains it, or its folder cannot be written.
    """
    with claimed(run, ranks=ranks, nodes=nodes, resume=resume) as claim:
        code = int(ExitCode.CRASH)
        try:
            code = go(claim)
        finally:
            close(run, claim, code)
    return code


def close(
    run: RunDir, claim: Claim, code: int, *, outcome: Outcome | None = None, blamed: list[str] | None = None
) -> None:
    """Record how an attempt ended. Says so where that fails; never raises for a disk, or for another attempt."""
    try:
        outcome = outcome or read_outcome(run, claim.attempt)
        close_attempt(run, claim, exit_code=code, error=_error(outcome, code), failed_nodes=blamed or [])
    except (MegatrainError, OSError) as error:
        message = str(error) if isinstance(error, MegatrainError) else f"{error.filename or run}: {reason(error)}"
        complain(f"{message}; that this attempt ended with exit code {code} is not recorded")


def _find_owner(run: RunDir, job: str | None) -> _Owner:
    attempts = read_attempts(run)
    last = _open_attempt(attempts)
    if last is None:
        return _Owner(None, None, [])
    states = commands.ask(filter(None, [last.job]))
    alive = living_owner(run, len(attempts) - 1, last, states, job, watch=True)
    return _Owner(last, alive, commands.nodes_down(last.nodes) if last.job and not alive else [])


@contextmanager
def _launcher_lock(run: RunDir, owner: _Owner) -> Iterator[None]:
    def refused(by: str) -> PreflightError:
        return PreflightError(f"{run}: is being trained by {by}. Stop that first: megatrain stop {copyable(run)}")

    if owner.lives:
        raise refused(owner.lives)
    try:
        with launcher_lock(run):
            yield
    except LockHeldError as error:
        raise refused(f"another process ({error})") from None


def _write_claim(
    run: RunDir,
    attempts: list[Attempt],
    owner: _Owner,
    *,
    start_step: int,
    ranks: int,
    nodes: list[str],
    job: str | None,
    admit: Callable[[list[Attempt]], None] | None,
) -> Claim:
    """With both locks held."""
    if owner.attempt is not None:
        attempts = [*attempts[:-1], _lost(run, len(attempts) - 1, owner)]
        write_attempts(run, attempts)
    if admit is not None:
        admit(attempts)
    claim = Claim(len(attempts), new_token())
    pid = os.getppid() if job else os.getpid()
    boot, namespace, ticks = identity(pid)
    start = {
        "job": job,
        "host": socket.gethostname(),
        "pid": pid,
        "token": claim.token,
        "boot": boot,
        "pid_namespace": namespace,
        "start_ticks": ticks,
        "folder": str(run.path.resolve()),
        "nodes": nodes,
        "ranks": ranks,
        "started": time.time(),
        "start_step": start_step,
    }
    _remove_outcome(run, claim.attempt)
    write_attempts(run, [*attempts, parse_model(Attempt, start, f"{run.attempts}: this attempt", PreflightError)])
    write_heartbeat(run, step=start_step, activity="starting", claim=claim)
    try:
        keep_room(run)
    except OSError as error:
        raise PreflightError(f"{run}: cannot be written: {reason(error)}") from None
    return claim


def _lost(run: RunDir, index: int, owner: _Owner) -> Attempt:
    """The last attempt, which its launcher did not close, closed with what its ranks and Slurm say."""
    assert owner.attempt is not None
    attempt, beat = owner.attempt, read_heartbeat(run)
    when = beat.time if beat and beat.attempt == index else attempt.started
    outcome = read_outcome(run, index)
    error = "its end was not recorded: it was killed, its node failed, or its disk was full"
    if owner.down:
        error = f"lost with {', '.join(owner.down)}"
    ending: dict[str, Any] = {"ended": max(when, attempt.started), "failed_nodes": owner.down, "error": error}
    if outcome is not None:
        ending |= {"exit_code": outcome.exit_code, "error": _error(outcome, outcome.exit_code)}
    return ended(run, attempt, **ending)


def _error(outcome: Outcome | None, code: int) -> str | None:
    if outcome is not None:
        return None if outcome.exit_code == ExitCode.STOPPED else outcome.error
    if code in (ExitCode.DONE, ExitCode.STOPPED):
        return None
    return f"the ranks exited with {code} without recording an outcome"


def _remove_outcome(run: RunDir, index: int) -> None:
    """Of a history that somebody deleted."""
    path = run.outcomes / f"{index}.json"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PreflightError(f"{path}: cannot be removed: {reason(error)}") from None


def _open_attempt(attempts: list[Attempt]) -> Attempt | None:
    return attempts[-1] if attempts and attempts[-1].ended is None else None
