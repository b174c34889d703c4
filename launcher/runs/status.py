"""Where a run is: Slurm's state, the heartbeat, metrics and checkpoints, put together. Works without Slurm as well."""

import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.runs.claim import living_owner
from launcher.slurm import commands
from launcher.slurm.commands import JobState
from launcher.slurm.job_record import read_job
from megatrain.base.errors import DataError, ExitCode, MegatrainError
from megatrain.base.progress import Progress
from megatrain.base.terminal import copyable
from megatrain.checkpoint.progress import is_complete, saved_progress
from megatrain.config import Config
from megatrain.config.file import load_own_config
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.attempts import Attempt, newest_step, read_attempts
from megatrain.run.directory import RunDir
from megatrain.run.heartbeat import read_heartbeat
from megatrain.run.outcomes import last_error, read_outcome

States = Mapping[str, JobState] | None  # of Slurm's jobs; None: it does not answer
_RECENT = 5  # reports that the rate is taken over


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything that is known; None where it is not."""

    run: str
    state: str  # pending, running, stopped, finished, failed, lost, or prepared (never started)
    detail: str  # why it waits, where it runs, what it does
    jobs: list[dict[str, str]]  # Slurm's that are not over
    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None  # of training; waiting in a queue comes on top
    attempts: int
    restarts: int
    goodput: float | None  # seconds in steps that counted, over all seconds in which the run held its nodes
    heartbeat_age_seconds: float | None
    checkpoint_step: int | None
    checkpoint: str | None
    last_error: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_status(run: RunDir) -> Status:
    """Raises MegatrainError when the folder holds no run that can be read."""
    return _status(run, commands.ask(_jobs(run)))


def all_statuses(folder: Path) -> list[Status]:
    """Of every run in a folder that can be read. Slurm is asked once."""
    runs, statuses, jobs = runs_in(folder), [], set[str]()
    for run in runs:
        with suppress(MegatrainError):
            jobs |= _jobs(run)
    states = commands.ask(jobs)
    for run in runs:
        with suppress(MegatrainError):
            statuses.append(_status(run, states))
    return statuses


def _status(run: RunDir, states: States) -> Status:
    config, attempts, rows = load_own_config(run.config), read_attempts(run), _rows(run)
    progress = saved_progress(run)
    state, detail = _state(run, attempts, states, complete=is_complete(run, config))
    steps = [row for row in rows if row.get("step_seconds")]
    beat = read_heartbeat(run)
    step = max(
        [row["step"] for row in steps[-1:]] + [beat.step if beat and state == "running" else 0, newest_step(run)]
    )
    rates = [row["tokens_per_second"] for row in steps[-_RECENT:] if row.get("tokens_per_second")]
    total = progress.step + config.steps_left(progress)
    seconds = statistics.median(row["step_seconds"] for row in steps[-_RECENT:]) if steps else None
    saved = run.steps()[-1:]
    return Status(
        run=str(run),
        state=state,
        detail=detail,
        jobs=[job._asdict() for job in commands.active(states, read_job(run).jobs)],
        step=step,
        total_steps=total,
        loss=steps[-1].get("loss") if steps else None,
        tokens_per_second=statistics.median(rates) if rates else None,
        eta_seconds=_eta(config, seconds * max(0, total - step) if seconds else None, steps),
        attempts=len(attempts),
        restarts=max(0, len(attempts) - 1),
        goodput=goodput(rows, attempts),
        heartbeat_age_seconds=round(time.time() - beat.time, 1) if beat else None,
        checkpoint_step=saved[0] if saved else None,
        checkpoint=str(run.step(saved[0])) if saved else None,
        last_error=None if state == "finished" else last_error(run),
    )


def _eta(config: Config, by_steps: float | None, rows: list[dict[str, Any]]) -> float | None:
    """Where the batch size is warmed up, by samples: later steps take longer."""
    if by_steps is None or not config.training.batch_size_warmup or not rows[-1].get("tokens_per_second"):
        return by_steps
    samples = config.samples_left(Progress(rows[-1]["step"], rows[-1]["tokens"] // config.sequence_length))
    return float(samples * config.sequence_length / rows[-1]["tokens_per_second"])


def goodput(rows: list[dict[str, Any]], attempts: list[Attempt]) -> float | None:
    """Seconds in steps that counted, over the seconds in which the run held its nodes.

    metrics.jsonl holds each step once: a resume drops the reports of steps that it repeats. What is lost goes into
    starting, compiling, saving, evaluating and repeating.
    """
    held = sum(max(0.0, (attempt.ended or time.time()) - attempt.started) for attempt in attempts)
    productive, before = 0.0, 0
    for row in rows:
        if row.get("step_seconds"):
            productive += row["step_seconds"] * (row["step"] - before)
            before = row["step"]
    return min(1.0, productive / held) if held > 0 and before else None


def runs_in(folder: Path) -> list[RunDir]:
    """Every run directly in a folder, the one that was touched last at the end."""
    runs = [RunDir(path.parent) for path in folder.glob("*/config.yaml")]
    return sorted(runs, key=lambda run: run.config.stat().st_mtime)


def _jobs(run: RunDir) -> set[str]:
    """Every job that may have the run now."""
    return {*read_job(run).jobs, *filter(None, (attempt.job for attempt in read_attempts(run)[-1:]))}


def _state(run: RunDir, attempts: list[Attempt], states: States, *, complete: bool) -> tuple[str, str]:
    jobs = commands.active(states, read_job(run).jobs)
    beat = read_heartbeat(run)
    doing = beat.activity if beat and beat.attempt == len(attempts) - 1 else ""
    for job in jobs:
        if job.state != "PENDING":
            return "running", ", ".join(filter(None, (f"job {job.id} ({job.state}) on {job.nodes}", doing)))
    if jobs:
        start = f", expected {job.start}" if (job := jobs[0]).start not in ("", "N/A") else ""
        return "pending", f"job {job.id} ({job.reason}{start})"
    last = attempts[-1] if attempts else None
    if last and (owner := living_owner(run, len(attempts) - 1, last, states)):
        return "running", ", ".join(filter(None, (owner, doing)))
    if complete:
        return "finished", ""
    if last is None:
        return "prepared", "not started yet"
    if last.ended is None and read_job(run).stop:
        return "stopped", f"as asked; megatrain resubmit {copyable(run)} resumes it"
    outcome = read_outcome(run, len(attempts) - 1) if last.ended is None else None
    if last.ended is None and outcome is None:
        return "lost", f"its end was not recorded; megatrain resubmit {copyable(run)}, or train it again"
    code = outcome.exit_code if outcome else last.exit_code
    if code in (ExitCode.STOPPED, ExitCode.DONE):
        return "stopped", "run the same command again to resume"
    unrecorded = ", and its launcher could not record it" if outcome else ""
    return "failed", f"exit code {code}{unrecorded}" if code is not None else "lost"


def _rows(run: RunDir) -> list[dict[str, Any]]:
    try:
        return read_metrics(run.metrics)
    except DataError:
        return []
