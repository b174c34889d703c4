"""One start of a run, from claim to verdict: `python -m launcher.slurm.attempt begin|end RUN`, for the job script.

                 ┌────────────────────────────── queued again ◄─────────────────────────────┐
submit → queue → begin ─ claim the run, close what was lost → srun … → end ─ the verdict ─┤
                   │                                                                        ├─ finished          0
                   ├─ the run is complete: nothing to do                             0     ├─ a user's mistake  2-5
                   ├─ another job trains it: refused                                 3     ├─ stopped by a user 75
                   └─ too many starts without a new checkpoint: refused              1     └─ given up          1
"""

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from launcher.slurm import clients
from launcher.slurm.job_file import JobFile, read_job, update_job
from megatrain import config_file
from megatrain.config import Config
from megatrain.errors import ExitCode, MegatrainError, PreflightError
from megatrain.monitor.attempts import (
    Attempt,
    Outcome,
    close_attempt,
    fruitless,
    locked,
    newest_step,
    read_attempts,
    read_heartbeat,
    read_outcome,
    unreliable_nodes,
    write_attempts,
)
from megatrain.run_dir import RunDir

_MISTAKES = (ExitCode.USAGE, ExitCode.PREFLIGHT, ExitCode.DATA, ExitCode.CHECKPOINT)  # another start would repeat them
# Errors of one machine, as CUDA, NCCL and the kernel word them. Illegal accesses and assertions are a program's.
_OF_A_NODE = re.compile(
    r"uncorrectable|hardware stack error|unspecified launch failure|launch timed out|no CUDA-capable device|"
    r"busy or unavailable|system not yet initialized|initialization error|CUDA driver|fallen off the bus|GPU is lost|"
    r"unhandled system error|Input/output error|Stale file handle|No space left on device|Bus error",
    re.IGNORECASE,
)
_FRESH_SECONDS = 60.0  # a heartbeat younger than this is of a run that lives
_COMPLETING_SECONDS = 60.0  # how long the job before this one may take to end
_AWAY_SECONDS, _ASK_AGAIN_SECONDS = 1800.0, 5.0  # how long a controller that is away is waited for, and how often asked

_T = TypeVar("_T")


class Verdict(NamedTuple):
    """What becomes of a job when its ranks have ended."""

    requeue: bool
    exit_code: int
    words: str


def begin(run: RunDir, *, ranks: int, nodes: list[str], job: str | None = None) -> int:
    """Claim the run for the ranks that start now; the index of the attempt.

    Raises:
        PreflightError: somebody else trains it.
    """
    with locked(run):
        attempts = read_attempts(run)
        if attempts and attempts[-1].ended is None:
            states = clients.ask(filter(None, [attempts[-1].job]))
            if owner := living_owner(run, attempts[-1], states, job):
                raise PreflightError(f"{run}: is being trained by {owner}. Stop that first: megatrain stop {run}")
            _close_lost(run, attempts)
            attempts = read_attempts(run)
        start = Attempt(
            job=job,
            host=socket.gethostname(),
            pid=os.getppid() if job else os.getpid(),
            nodes=nodes,
            ranks=ranks,
            started=time.time(),
            start_step=newest_step(run),
        )
        (run.outcomes / f"{len(attempts)}.json").unlink(missing_ok=True)  # of a history that somebody deleted
        write_attempts(run, [*attempts, start])
        return len(attempts)


def verdict(
    config: Config, attempts: list[Attempt], attempt: Attempt, outcome: Outcome | None, code: int, book: JobFile
) -> Verdict:
    """Decide what becomes of a job whose last attempt has been closed. Reads nothing, changes nothing.

    Args:
        code: srun's exit code: 0 also where the ranks saved and stopped.
        outcome: of the first rank that did not simply finish.
    """
    step = attempt.end_step or 0
    if step >= config.total_steps:
        return Verdict(False, ExitCode.DONE, f"finished: step {step:,}, after {len(attempts)} starts")
    if book.stop:
        return Verdict(False, ExitCode.STOPPED, f"stopped at step {step:,}, as asked; not queued again")
    stopped = code == 0 and outcome is not None and outcome.exit_code == ExitCode.STOPPED
    why = outcome.error if outcome else f"the ranks ended with {code}, and said nothing"
    failed = outcome.exit_code if outcome and outcome.exit_code != ExitCode.STOPPED else ExitCode.CRASH
    if not stopped and failed in _MISTAKES:
        return Verdict(False, failed, f"not queued again, for it would fail again: {why}")
    in_vain, allowed = fruitless(attempts, book.submitted), config.slurm.restarts_without_progress
    if in_vain > allowed:
        again = ExitCode.STOPPED if stopped else failed
        words = f"given up: {in_vain} starts in a row without a new checkpoint. The last: {why}. When that is mended: "
        return Verdict(False, again, f"{words}megatrain resubmit RUN")
    what = f"saved step {step:,}" if attempt.progressed else f"no new checkpoint ({in_vain} of {allowed + 1} starts)"
    cause = "" if stopped else f" after: {why}"
    return Verdict(True, ExitCode.STOPPED if stopped else failed, f"{what}; queued again{cause}")


def node_is_to_blame(outcome: Outcome) -> bool:
    """Whether this failure speaks against its node: a bug of the program shows anywhere, and so does a lost peer."""
    return outcome.exit_code == ExitCode.CRASH and _OF_A_NODE.search(outcome.error) is not None


def end(run: RunDir, index: int, code: int, job: str) -> int:
    """Close the attempt, and queue the job again or say a last word. Returns the job's exit code."""
    config, book, outcome = config_file.load(run.config), read_job(run), read_outcome(run, index)
    blamed = [outcome.host] if outcome and node_is_to_blame(outcome) else []
    error = outcome.error if outcome and outcome.exit_code != ExitCode.STOPPED else None
    with locked(run):
        said = outcome.exit_code if outcome else code
        attempt = close_attempt(run, index, exit_code=said, failed_nodes=blamed, error=error)
    attempts = read_attempts(run)
    ending = verdict(config, attempts, attempt, outcome, code, book)
    words = ending.words.replace("RUN", str(run))
    others = [other for other in book.jobs if other != job]
    if not ending.requeue:
        print(f"megatrain: {words}", flush=True)
        clients.cancel(state.id for state in clients.active(clients.ask(others), others))
        return ending.exit_code
    states = _patiently(lambda: clients.job_states([job, *others]))
    if later := clients.active(states, others):  # a chain: the next job goes on
        print(f"megatrain: {words.replace('queued again', f'job {later[0].id} goes on')}", flush=True)
        return ending.exit_code
    if job in states and states[job].state.startswith("CANCELLED"):
        print("megatrain: cancelled; not queued again", flush=True)
        return ending.exit_code
    excluded = unreliable_nodes(attempts, book.submitted)
    without = f", without {', '.join(excluded)}" if excluded else ""
    print(f"megatrain: {words}{without}", flush=True)
    _patiently(lambda: clients.requeue(job, exclude=excluded))
    return ending.exit_code


def attempted(run: RunDir, ranks: int, nodes: list[str], go: Callable[[int], int]) -> int:
    """A start by hand: claim the run, `go(attempt)`, and close the attempt with the exit code that this returns.

    Raises:
        PreflightError: somebody else trains it.
    """
    index = begin(run, ranks=ranks, nodes=nodes)
    code = int(ExitCode.CRASH)
    try:
        code = go(index)
    finally:
        outcome = read_outcome(run, index)
        error = outcome.error if outcome and outcome.exit_code != ExitCode.STOPPED else None
        close_attempt(run, index, exit_code=code, error=error)
    return code


def living_owner(
    run: RunDir, attempt: Attempt, states: Mapping[str, clients.JobState] | None, job: str | None = None
) -> str | None:
    """Who trains the run now, in words; None when nobody does, or `job` itself was requeued.

    Args:
        states: what Slurm says of the attempt's job; None where it does not answer.
    """
    if attempt.ended is not None or (attempt.job is not None and attempt.job == job):
        return None
    if attempt.job is not None and states is None:
        return f"job {attempt.job} (Slurm does not answer)" if _heartbeat_age(run) < _FRESH_SECONDS else None
    if attempt.job is not None:
        running = [state for state in clients.active(states, [attempt.job]) if state.state != "PENDING"]
        return f"job {attempt.job} ({running[0].state})" if running else None
    name = f"process {attempt.pid} on {attempt.host}"
    if attempt.host == socket.gethostname():
        return name if _started_before(attempt.pid, attempt.started) else None
    return name if _heartbeat_age(run) < _FRESH_SECONDS else None


def _refuse_hopeless(run: RunDir, config: Config) -> None:
    """Slurm starts a job again after a node failure, and the next of a chain, whatever became of the start before."""
    in_vain = fruitless(read_attempts(run), read_job(run).submitted)
    if in_vain > config.slurm.restarts_without_progress:
        update_job(run, stop=True)
        raise PreflightError(
            f"{run}: given up: {in_vain} starts in a row without a new checkpoint. "
            f"When that is mended: megatrain resubmit {run}"
        )


def _close_lost(run: RunDir, attempts: list[Attempt]) -> None:
    """The last attempt ended without a word: its node died, or it was killed."""
    lost, beat = attempts[-1], read_heartbeat(run)
    ours = beat is not None and beat.attempt == len(attempts) - 1
    down = clients.nodes_down(lost.nodes) if lost.job else []
    reason = f"lost with {', '.join(down)}" if down else "ended without a word (killed, or its node failed)"
    when = beat.time if beat and ours else lost.started
    close_attempt(run, len(attempts) - 1, ended=max(when, lost.started), failed_nodes=down, error=reason)


def _wait_for_predecessor(run: RunDir, job: str) -> None:
    """The next of a chain may start while Slurm still clears up after the one before."""
    deadline = time.monotonic() + _COMPLETING_SECONDS
    while time.monotonic() < deadline:
        others = [other for other in read_job(run).jobs if other != job]
        if not any(state.state == "COMPLETING" for state in clients.active(clients.ask(others), others)):
            return
        time.sleep(1.0)


def _patiently(ask: Callable[[], _T]) -> _T:
    """What Slurm answers, also when its controller is just being restarted.

    Raises:
        PreflightError: it refuses, or is away for too long.
    """
    deadline, said = time.monotonic() + _AWAY_SECONDS, False
    while True:
        try:
            return ask()
        except clients.NoAnswerError as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                print(f"megatrain: {error}; asking again for {_AWAY_SECONDS / 60:.0f} minutes", flush=True)
            said = True
            time.sleep(_ASK_AGAIN_SECONDS)


def _heartbeat_age(run: RunDir) -> float:
    beat = read_heartbeat(run)
    return time.time() - beat.time if beat else float("inf")


def _started_before(pid: int, moment: float) -> bool:
    """Whether the process lives, and is old enough not to be another one with the same number."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # proc(5), starttime
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return False
    started = time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    return started <= moment + 1.0


def _begin_job(run: RunDir) -> int:
    job = os.environ["SLURM_JOB_ID"]
    if read_job(run).stop:
        print(f"megatrain: {run} was stopped; `megatrain resubmit {run}` goes on", file=sys.stderr)
        return ExitCode.STOPPED
    config = config_file.load(run.config)
    if newest_step(run) >= config.total_steps:
        print(f"megatrain: {run} is complete; there is nothing left to do", file=sys.stderr)
        return ExitCode.DONE
    _wait_for_predecessor(run, job)
    nodes = clients.hostnames(os.environ.get("SLURM_JOB_NODELIST", ""))
    index = begin(run, ranks=int(os.environ.get("SLURM_NTASKS", "0")), nodes=nodes, job=job)
    attempts = read_attempts(run)
    try:
        _refuse_hopeless(run, config)
    except PreflightError:
        write_attempts(run, attempts[:-1])
        raise
    excluded = unreliable_nodes(attempts, read_job(run).submitted)
    if bad := sorted(set(excluded) & set(nodes)):
        write_attempts(run, attempts[:-1])
        print(f"megatrain: {', '.join(bad)} failed twice; queued again without", file=sys.stderr, flush=True)
        clients.requeue(job, exclude=excluded)
        return ExitCode.STOPPED
    print(index)
    return ExitCode.DONE


def main() -> int:
    parser = argparse.ArgumentParser(prog="launcher.slurm.attempt", description=__doc__)
    parser.add_argument("action", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("code", type=int, nargs="?", default=0, help="of srun")
    arguments = parser.parse_args()
    run = RunDir(arguments.run)
    try:
        if arguments.action == "begin":
            return _begin_job(run)
        return end(run, int(os.environ["MEGATRAIN_ATTEMPT"]), arguments.code, os.environ["SLURM_JOB_ID"])
    except MegatrainError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
