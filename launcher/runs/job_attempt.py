"""One attempt of a job, from claim to verdict: `python -m launcher.runs.job_attempt begin|end RUN`, for the job script.

                 ┌──────────────────────────────── requeued ◄───────────────────────────────┐
submit → queue → begin ─ claim the run, close what was lost → srun … → end ─ the verdict ─┤
                   │                                                                        ├─ finished          0
                   ├─ the run is complete: nothing to do                             0     ├─ a user's mistake  2-5
                   ├─ another job trains it: refused                                 3     ├─ stopped by a user 75
                   └─ too many restarts without a new checkpoint: refused            1     └─ aborted           1
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from launcher.runs.claim import claimed, close
from launcher.slurm import commands
from launcher.slurm.job_record import read_job, update_job
from launcher.slurm.verdict import node_is_to_blame, verdict
from megatrain.base.errors import ExitCode, MegatrainError, PreflightError
from megatrain.base.files import reason
from megatrain.base.terminal import accept_any_text, complain, copyable, say
from megatrain.checkpoint.progress import is_complete
from megatrain.config.file import load_own_config
from megatrain.run.attempts import Attempt, attempts_without_progress, ended, read_attempts, unreliable_nodes
from megatrain.run.claim import VARIABLE, Claim, superseded
from megatrain.run.directory import RunDir
from megatrain.run.outcomes import Outcome, read_outcome

_COMPLETING_SECONDS = 60.0  # how long the job before this one may take to end
_AWAY_SECONDS, _ASK_AGAIN_SECONDS = 1800.0, 5.0  # how long a controller that is away is waited for, and how often asked

_T = TypeVar("_T")


class _NoProgressError(PreflightError):
    """Too many restarts without a new checkpoint."""


class _UnreliableNodesError(PreflightError):
    """The job was given nodes that have failed twice."""

    def __init__(self, bad: list[str], excluded: list[str]) -> None:
        super().__init__(f"{', '.join(bad)} failed twice; requeued without")
        self.excluded = excluded


def begin(run: RunDir, job: str) -> int:
    """Claim the run for this job, and print the claim for its ranks; prints nothing when there is nothing to do."""
    if read_job(run).stop:
        say(f"megatrain: {run} was stopped; `megatrain resubmit {copyable(run)}` resumes it", file=sys.stderr)
        return ExitCode.STOPPED
    config = load_own_config(run.config)
    if is_complete(run, config):
        say(f"megatrain: {run} is complete; nothing to do", file=sys.stderr)
        return ExitCode.DONE
    _wait_for_predecessor(run, job)
    nodes = commands.hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
    job_record = read_job(run)

    def admit(attempts: list[Attempt]) -> None:
        """Slurm requeues a job after a node failure, and starts the next of a chain, however the one before ended."""
        in_vain = attempts_without_progress(attempts, job_record.submitted)
        if in_vain > config.slurm.max_restarts_without_progress:
            raise _NoProgressError(
                f"{run}: aborted after {in_vain - 1} restarts without a new checkpoint. "
                f"When that is fixed: megatrain resubmit {copyable(run)}"
            )
        excluded = unreliable_nodes(attempts, job_record.submitted)
        if bad := sorted(set(excluded) & set(nodes)):
            raise _UnreliableNodesError(bad, excluded)

    try:
        with claimed(run, ranks=_tasks(), nodes=nodes, job=job, admit=admit) as claim:
            say(claim)
    except _NoProgressError:
        update_job(run, stop=True)
        raise
    except _UnreliableNodesError as error:
        say(f"megatrain: {error}", file=sys.stderr, flush=True)
        commands.requeue(job, exclude=error.excluded)
        return ExitCode.STOPPED
    return ExitCode.DONE


def end(run: RunDir, claim: Claim, code: int, job: str) -> int:
    """Close the attempt, and requeue the job or print its final message. Returns the job's exit code."""
    if why := superseded(run, claim):
        say(f"megatrain: {run}: {why}; this job is not requeued", flush=True)
        return code or ExitCode.PREFLIGHT
    attempts = read_attempts(run)
    if claim.attempt >= len(attempts):
        raise PreflightError(f"{run.attempts}: is gone: the run's folder was moved or deleted while it was trained")
    outcome = _outcome(run, claim)
    blamed = [outcome.host] if outcome and node_is_to_blame(outcome) else []
    exit_code = outcome.exit_code if outcome else code
    close(run, claim, exit_code, outcome=outcome, blamed=blamed)
    attempts[claim.attempt] = ended(run, attempts[claim.attempt], exit_code=exit_code, failed_nodes=blamed)
    config, job_record = load_own_config(run.config), read_job(run)
    complete = is_complete(run, config)
    ending = verdict(config, attempts, attempts[claim.attempt], outcome, code, job_record, complete=complete)
    others = [other for other in job_record.jobs if other != job]
    if not ending.requeue:
        advice = f" When that is fixed: megatrain resubmit {copyable(run)}" if ending.aborted else ""
        say(f"megatrain: {ending.text()}{advice}", flush=True)
        commands.cancel(state.id for state in commands.active(commands.ask(others), others))
        return ending.exit_code
    states = _patiently(lambda: commands.job_states([job, *others]))
    if later := commands.active(states, others):  # a chain: the next job resumes
        say(f"megatrain: {ending.text(f'job {later[0].id} resumes')}", flush=True)
        return ending.exit_code
    if job in states and states[job].state.startswith("CANCELLED"):
        say("megatrain: cancelled; not requeued", flush=True)
        return ending.exit_code
    excluded = unreliable_nodes(attempts, job_record.submitted)
    without = f", without {', '.join(excluded)}" if excluded else ""
    say(f"megatrain: {ending.text()}{without}", flush=True)
    _patiently(lambda: commands.requeue(job, exclude=excluded))
    return ending.exit_code


def _outcome(run: RunDir, claim: Claim) -> Outcome | None:
    try:
        return read_outcome(run, claim.attempt)
    except PreflightError as error:
        say(f"megatrain: {error}", file=sys.stderr, flush=True)
        return None


def _tasks() -> int:
    value = os.environ.get("SLURM_NTASKS", "0")
    return int(value) if value.isdecimal() else 0


def _wait_for_predecessor(run: RunDir, job: str) -> None:
    """The next of a chain may start while Slurm still clears up after the one before."""
    deadline = time.monotonic() + _COMPLETING_SECONDS
    while time.monotonic() < deadline:
        others = [other for other in read_job(run).jobs if other != job]
        if not any(state.state == "COMPLETING" for state in commands.active(commands.ask(others), others)):
            return
        time.sleep(1.0)


def _patiently(ask: Callable[[], _T]) -> _T:
    """What Slurm answers, also when its controller is just being restarted.

    Raises:
        PreflightError: it refuses, or is away for too long.
    """
    deadline, told = time.monotonic() + _AWAY_SECONDS, False
    while True:
        try:
            return ask()
        except commands.NoAnswerError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"megatrain: {error}; asking again for {_AWAY_SECONDS / 60:.0f} minutes", flush=True)
            told = True
            time.sleep(_ASK_AGAIN_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="launcher.runs.job_attempt", description=__doc__)
    parser.add_argument("action", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("code", type=int, nargs="?", default=0, help="of srun")
    arguments = parser.parse_args()
    accept_any_text()
    run, job, code = RunDir(arguments.run), os.environ["SLURM_JOB_ID"], arguments.code
    try:
        if arguments.action == "begin":
            return begin(run, job)
        claim = Claim.parse(os.environ.get(VARIABLE, ""))
        if claim is None:
            raise PreflightError(f"environment: {VARIABLE}: {os.environ.get(VARIABLE)!r}: must be what begin printed")
        return end(run, claim, code, job)
    except MegatrainError as error:
        complain(error)
        return code or error.exit_code
    except OSError as error:
        complain(f"{error.filename or run}: {reason(error)}")
        return code or ExitCode.PREFLIGHT


if __name__ == "__main__":
    sys.exit(main())
