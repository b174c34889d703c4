"""A run's jobs in Slurm: submit one or a chain of them, stop them. What Slurm says of them is in `commands`."""

import time

from launcher.slurm import commands
from launcher.slurm.job_record import update_job
from megatrain.run.directory import RunDir


def submit(script: str, run: RunDir, *, chain: int = 1) -> list[str]:
    """Submit `chain` jobs, each to start when the one before has ended; their ids.

    Raises:
        PreflightError: as `commands.submit`; jobs that were submitted before it stay.
    """
    update_job(run, jobs=[], submitted=time.time(), stop=False)  # first: a job may start before sbatch has returned
    jobs: list[str] = []
    for _ in range(chain):
        jobs.append(commands.submit(script, run, after=jobs[-1] if jobs else None))
        update_job(run, jobs=jobs)
    return jobs


def stop(run: RunDir, active: list[commands.JobState], *, now: bool) -> str:
    """Let these jobs save and stop, or cancel them at once; what was done, a line per job."""
    update_job(run, stop=True)  # before the signal: the job script reads it when its ranks have ended
    waiting = [job.id for job in active if job.state == "PENDING"]
    running = [job.id for job in active if job.state != "PENDING"]
    commands.cancel(waiting)
    commands.cancel(running, *([] if now else ["--signal=USR2"]))
    done = [f"job {job}: cancelled before it started" for job in waiting]
    done += [f"job {job}: {'cancelled' if now else 'it saves and stops'}" for job in running]
    return "\n".join(done)
