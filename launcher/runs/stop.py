"""Stop a run, wherever it runs: its Slurm jobs, or the process that started its ranks on this machine."""

import os
import signal
import time
from contextlib import suppress

from launcher.runs.owner import living_owner
from launcher.slurm import commands, job
from launcher.slurm.job_record import read_job
from megatrain.base.errors import PreflightError
from megatrain.base.files import reason
from megatrain.run.attempts import Attempt, read_attempts
from megatrain.run.directory import RunDir
from megatrain.run.launchers import is_elsewhere, not_to_be_signalled

_BETWEEN_INTERRUPTS = 0.3  # seconds


def stop_run(run: RunDir, *, now: bool) -> str:
    """Let the run save and stop, or end it at once; what was done, in words.

    Raises:
        PreflightError: nothing trains it, or it runs where this machine cannot reach it.
    """
    jobs, attempts = read_job(run).jobs, read_attempts(run)
    if active := commands.active(commands.job_states(jobs), jobs):
        return job.stop(run, active, now=now)
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
            time.sleep(_BETWEEN_INTERRUPTS)
            with suppress(ProcessLookupError):
                os.kill(attempt.pid, signal.SIGINT)  # the second one does not wait
    except OSError as error:
        raise PreflightError(f"{run}: {owner} cannot be signalled: {reason(error)}.") from None
    return f"{owner}: {'ended' if now else 'it saves and stops'}"
