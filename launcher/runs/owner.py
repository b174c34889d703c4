"""Who has a run now: a Slurm job or a process, by what Slurm, its machine or its heartbeat say."""

from collections.abc import Mapping

from launcher.slurm import commands
from launcher.slurm.job_record import read_job
from megatrain.run.attempts import Attempt, read_attempts
from megatrain.run.directory import RunDir
from megatrain.run.heartbeat import beats
from megatrain.run.launchers import is_elsewhere, lives


def busy_with(run: RunDir) -> str | None:
    """The job that waits or runs, or the process that trains the run, in words.

    Where no Slurm answers, the run's own files say.
    """
    jobs, attempts = read_job(run).jobs, read_attempts(run)
    states = commands.ask({*jobs, *filter(None, (attempt.job for attempt in attempts[-1:]))})
    for job in commands.active(states, jobs):
        return f"job {job.id} ({job.state})"
    return living_owner(run, len(attempts) - 1, attempts[-1], states) if attempts else None


def living_owner(
    run: RunDir,
    index: int,
    attempt: Attempt,
    states: Mapping[str, commands.JobState] | None,
    job: str | None = None,
    *,
    watch: bool = False,
) -> str | None:
    """Who trains the run now, in words; None when nobody does, or `job` itself was requeued.

    Args:
        index: of the attempt, which is the last.
        states: what Slurm says of the attempt's job; None where it does not answer.
        watch: take seconds to see whether another machine's heartbeat changes, where its clock may be wrong.
    """
    if attempt.ended is not None or (attempt.job is not None and attempt.job == job):
        return None
    if attempt.job is not None and states is None:
        return f"job {attempt.job} (Slurm does not answer)" if beats(run, index, watch=watch) else None
    if attempt.job is not None:
        running = [state for state in commands.active(states, [attempt.job]) if state.state != "PENDING"]
        return f"job {attempt.job} ({running[0].state})" if running else None
    alive = beats(run, index, watch=watch) if is_elsewhere(attempt) else lives(run, attempt)
    return f"process {attempt.pid} on {attempt.host}" if alive else None
