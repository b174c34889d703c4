"""Slurm's own commands, each under a time-out: without a controller they would try for minutes."""

import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from megatrain.base.errors import PreflightError
from megatrain.base.files import write_atomically
from megatrain.run.directory import RunDir

TIMEOUT_SECONDS = 30.0
_WAIT_SECONDS = 20.0  # for a job that was told to end
_FIELDS = "%i|%T|%r|%N|%S"  # id, state, reason, nodes, (expected) start
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
_AWAY = ("Unable to contact slurm controller", "Socket timed out", "Zero Bytes were transmitted")  # libslurm's words
DOWN = ("down", "drain", "fail", "unknown", "boot", "power", "maint", "inval")  # how the words for a node's state begin


class NoAnswerError(PreflightError):
    """The controller is away: it may be back in a minute."""


class JobState(NamedTuple):
    id: str
    state: str  # Slurm's word, such as PENDING
    reason: str
    nodes: str
    start: str

    @property
    def active(self) -> bool:
        """Whether it runs, or will."""
        return not self.state.startswith(ENDED)


def run_slurm(*command: str, text: str | None = None) -> str:
    """Run a Slurm command under a time-out; its standard output, or its errors where it says nothing else.

    Raises:
        NoAnswerError: there is no answer, in time or at all.
        PreflightError: it is missing, or fails.
    """
    name = command[0]
    if shutil.which(name) is None:
        raise PreflightError(f"{name}: not found: this machine has no Slurm. Run it on a login node, or use `train`.")
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        message = _joined(name, error.stderr)  # sbatch tries again for minutes when the queue is full, and says so
        fix = f"It said: {message}" if message else "Try `scontrol ping`."
        raise NoAnswerError(f"{name}: no answer from Slurm in {TIMEOUT_SECONDS:.0f} s. {fix}") from None
    if done.returncode:
        message = _joined(name, done.stderr) or f"failed with {done.returncode}"
        raise (NoAnswerError if any(text in message for text in _AWAY) else PreflightError)(f"{name}: {message}")
    return done.stdout or done.stderr


def present() -> bool:
    """Whether this machine has Slurm's commands; says nothing of a controller."""
    return shutil.which("squeue") is not None


def answers() -> bool:
    """Whether there is a Slurm here that could take a job."""
    try:
        return " UP" in run_slurm("scontrol", "ping")
    except PreflightError:
        return False


def submit(script: str, run: RunDir, *, after: str | None = None) -> str:
    """Write RUN/job.sbatch and submit it; the job's id.

    Args:
        after: a job that must end, in whatever way, before this one starts.

    Raises:
        PreflightError: sbatch is missing, does not answer, or refuses the job; with its own words.
    """
    write_atomically(run.job_script, script)
    dependency = [f"--dependency=afterany:{after}"] if after else []
    return run_slurm("sbatch", "--parsable", *dependency, str(run.job_script)).strip().split(";")[0]


def test_only(script: str) -> str:
    """What sbatch says of when and where the job could start. Submits nothing.

    Raises:
        PreflightError: the job can never start here; with sbatch's reason.
    """
    return run_slurm("sbatch", "--test-only", text=script)


test_only.__test__ = False  # type: ignore[attr-defined] # not a test, whatever pytest thinks of its name


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """What Slurm knows of these jobs: squeue's memory of minutes, then sacct's where there is accounting.

    Raises:
        PreflightError: squeue is missing or does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    lines = run_slurm("squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", f"--format={_FIELDS}")
    states = _parse(lines, wanted)
    if missing := wanted - states.keys():
        with suppress(PreflightError):  # accounting is often absent
            fields = "JobID,State,Reason,NodeList,Start"
            lines = run_slurm("sacct", "-n", "-X", "-P", f"--jobs={','.join(sorted(missing))}", f"--format={fields}")
            states |= _parse(lines, missing)
    return states


def ask(jobs: Iterable[str]) -> dict[str, JobState] | None:
    """As `job_states`; None where there is no Slurm, or no answer."""
    try:
        return job_states(jobs)
    except PreflightError:
        return None


def active(states: Mapping[str, JobState] | None, jobs: Iterable[str]) -> list[JobState]:
    """Of these jobs, those that run or wait, in the order given."""
    known = states or {}
    return [known[job] for job in jobs if job in known and known[job].active]


def nodes_down(nodes: Iterable[str]) -> list[str]:
    """Those of the nodes that Slurm holds for unusable; none where it does not answer."""
    wanted = ",".join(nodes)
    if not wanted:
        return []
    with suppress(PreflightError):
        lines = run_slurm("sinfo", "--noheader", "--Node", f"--nodes={wanted}", "--format=%N %T").splitlines()
        states = (line.split() for line in lines)
        return sorted({name for name, state in states if state.startswith(DOWN) or state.endswith("*")})
    return []


def cancel(jobs: Iterable[str], *options: str) -> None:
    """`scancel`, with options such as --signal=USR2. Raises PreflightError as `run_slurm` does."""
    if listed := list(jobs):
        run_slurm("scancel", "--quiet", *options, *listed)


def requeue(job: str, *, exclude: Iterable[str] = ()) -> None:
    """Put the job that this process runs in back into the queue, and wait for Slurm to end the process.

    Slurm takes a list of excluded nodes only from a job that waits: it is given between the requeue and the end.

    Raises:
        PreflightError: Slurm refuses, as for a job that was cancelled.
    """
    excluded = ",".join(exclude)
    if excluded:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, while there is something left to say
    try:
        run_slurm("scontrol", "requeue", job)
        if excluded:
            _exclude(job, excluded)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.environ.get("SLURM_JOB_ID") == job:
        time.sleep(_WAIT_SECONDS)


def _exclude(job: str, nodes: str) -> None:
    """As soon as Slurm takes it, or not at all."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        with suppress(PreflightError):
            run_slurm("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")
            return
        time.sleep(0.2)


def hostnames(nodes: str) -> list[str]:
    """Slurm's short form of a list of nodes, such as node[1-3], in full."""
    return run_slurm("scontrol", "show", "hostnames", nodes).split() if nodes else []


def _joined(name: str, errors: str | bytes | None) -> str:
    text = errors.decode(errors="replace") if isinstance(errors, bytes) else errors or ""
    return " ".join(line.removeprefix(f"{name}: error: ") for line in text.strip().splitlines())


def _parse(lines: str, wanted: set[str]) -> dict[str, JobState]:
    rows = (line.split("|") for line in lines.splitlines())
    states = (JobState(*row) for row in rows if len(row) == len(JobState._fields))
    return {state.id: state for state in states if state.id in wanted}
