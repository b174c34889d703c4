"""What can be done with a run's jobs: hand in, chain, stop. What Slurm says of them is in commands."""

import os
import signal
import time
from contextlib import suppress

from launcher.preflight.on_disk import Finding
from launcher.runs.claim import living_owner
from launcher.slurm import commands
from launcher.slurm.job_record import read_job, update_job
from megatrain.base.errors import MegatrainError, PreflightError
from megatrain.base.files import reason
from megatrain.base.terminal import copyable
from megatrain.checkpoint import rewind
from megatrain.run.attempts import Attempt, read_attempts
from megatrain.run.directory import RunDir
from megatrain.run.launchers import is_elsewhere, not_to_be_signalled
from megatrain.run.lock import locked


def findings(script: str, run: RunDir) -> list[Finding]:
    """What Slurm has against this job, and whether the run has one already."""
    found = []
    if "#SBATCH --gpus-per-node" in script and "#SBATCH --cpus-per-" not in script:
        text = "slurm.cpus_per_task: not given, and Slurm names no node with GPUs: a rank may get one core."
        found.append(Finding("warning", text))
    try:
        if busy := busy_with(run):
            word = copyable(run)
            text = f"{run}: {busy} has it already. Follow it: megatrain status {word}. Stop it: megatrain stop {word}"
            found.append(Finding("error", text))
        commands.test_only(script)
    except MegatrainError as error:
        found.append(Finding("error", str(error), error.exit_code))
    return found


def busy_with(run: RunDir) -> str | None:
    """The job that waits or runs, or the process that trains it, in words.

    Where no Slurm answers, the run's own files say.
    """
    jobs, attempts = read_job(run).jobs, read_attempts(run)
    states = commands.ask({*jobs, *filter(None, (attempt.job for attempt in attempts[-1:]))})
    for job in commands.active(states, jobs):
        return f"job {job.id} ({job.state})"
    return living_owner(run, len(attempts) - 1, attempts[-1], states) if attempts else None


def go_back(run: RunDir, resume: str) -> rewind.SetAside | None:
    """What --resume asks for, done now: a job goes on from the newest checkpoint, however often it is requeued.

    Raises:
        CheckpointError: as `rewind.go_back`.
        PreflightError: the run has been taken in the meantime.
    """
    with locked(run):
        return rewind.go_back(run, resume)


def submit(script: str, run: RunDir, *, chain: int = 1) -> list[str]:
    """Hand in `chain` jobs, each to start when the one before has ended; their ids.

    Raises:
        PreflightError: as `commands.submit`; jobs that were handed in before it stay.
    """
    update_job(run, jobs=[], submitted=time.time(), stop=False)  # first: a job may start before sbatch has returned
    jobs: list[str] = []
    for _ in range(chain):
        jobs.append(commands.submit(script, run, after=jobs[-1] if jobs else None))
        update_job(run, jobs=jobs)
    return jobs


def stop(run: RunDir, *, now: bool) -> str:
    """Let the run save and stop, or end it at once; what was done, in words.

    Raises:
        PreflightError: nothing trains it, or it runs where this machine cannot reach it.
    """
    jobs, attempts = read_job(run).jobs, read_attempts(run)
    states = commands.job_states(jobs)
    if active := commands.active(states, jobs):
        return _stop_jobs(run, active, now=now)
    if not attempts or attempts[-1].ended is not None:
        raise PreflightError(f"{run}: nothing trains it; there is nothing to stop.")
    last = attempts[-1]
    if last.job is not None:
        raise PreflightError(f"{run}: nothing trains it: job {last.job}, which did, is over.")
    return _stop_process(run, len(attempts) - 1, last, now=now)


def _stop_process(run: RunDir, index: int, attempt: Attempt, *, now: bool) -> str:
    owner = f"process {attempt.pid} on {attempt.host}"
    if is_elsewhere(attempt):
        if living_owner(run, index, attempt, None, watch=True):
            raise PreflightError(f"{run}: is trained by {owner}. Give the command there.")
        raise PreflightError(f"{run}: nothing trains it: {owner}, which did, gives no sign of life.")
    if why := not_to_be_signalled(run, attempt):
        raise PreflightError(f"{run}: nothing is stopped: {why}.")
    try:
        os.kill(attempt.pid, signal.SIGINT if now else signal.SIGUSR2)
        if now:
            time.sleep(0.3)
            with suppress(ProcessLookupError):
                os.kill(attempt.pid, signal.SIGINT)  # the second one does not wait
    except OSError as error:
        raise PreflightError(f"{run}: {owner} cannot be signalled: {reason(error)}.") from None
    return f"{owner}: {'ended' if now else 'it saves and stops'}"


def _stop_jobs(run: RunDir, active: list[commands.JobState], *, now: bool) -> str:
    update_job(run, stop=True)  # before the signal: the job script reads it when its ranks have ended
    waiting = [job.id for job in active if job.state == "PENDING"]
    running = [job.id for job in active if job.state != "PENDING"]
    commands.cancel(waiting)
    commands.cancel(running, *([] if now else ["--signal=USR2"]))
    done = [f"job {job}: taken out of the queue" for job in waiting]
    done += [f"job {job}: {'cancelled' if now else 'it saves and stops'}" for job in running]
    return "\n".join(done)
