"""What an attempt that resumes a run changes of it: a line per field, and the learning rate before and after."""

from collections.abc import Iterator

from launcher.preflight.finding import Finding
from launcher.run_fields import differences, resume_rule
from megatrain.base.errors import ExitCode, MegatrainError
from megatrain.base.formatting import scientific
from megatrain.base.progress import Progress
from megatrain.base.section import REPORTED
from megatrain.checkpoint.progress import start_progress
from megatrain.config import Config
from megatrain.config.file import load_own_config
from megatrain.config.rules import warmup_issue
from megatrain.run.branch import origin
from megatrain.run.directory import RunDir
from megatrain.schedule.learning_rate import learning_rate

_JUMP = 1.05  # a rate that goes up by more, from one step to the next, is worth a warning


def progress_at_start(config: Config, run: RunDir, resume: str) -> Progress:
    """Where an attempt with `--resume` would resume from."""
    if resume == "never":
        return Progress()
    # a longer number names no step: `check_resume` says so
    named = resume.isascii() and resume.isdigit() and len(resume) <= 15
    return start_progress(run, config, step=int(resume) if named else None)


def check_changes(config: Config, run: RunDir, resume: str) -> Iterator[Finding]:
    """
    Args:
        config: resolved.
    """
    progress = progress_at_start(config, run, resume)
    run, _ = origin(run, config)
    if problem := warmup_issue(config, progress):
        yield Finding("error", f"{problem.field}: {problem.value}: {problem.rule}. {problem.fix}", ExitCode.USAGE)
    if not progress.step or not run.config.is_file():
        return
    try:
        before = load_own_config(run.config)
    except MegatrainError:
        return  # reported elsewhere
    changed = {
        name: values for name, values in differences(before, config).items() if resume_rule(config, name) is REPORTED
    }
    for name, (old, new) in changed.items():
        yield Finding("note", f"{name}: {_value(new)}, was {_value(old)}")
    if any(name.startswith(("optimizer.learning_rate", "schedule.", "training.")) for name in changed):
        yield from _rate(before, config, progress)


def _rate(before: Config, now: Config, progress: Progress) -> Iterator[Finding]:
    if not now.steps_left(progress):
        return
    last = Progress(
        progress.step - 1, progress.samples_at(progress.step - 1, now.training.batch_sizes), progress.batches
    )
    old, new, done = learning_rate(progress, before), learning_rate(progress, now), learning_rate(last, before)
    step = progress.step + 1
    text = f"learning rate of step {step:,}: {scientific(new)}, was {scientific(old)} before these changes"
    if new > _JUMP * max(old, done):
        yield Finding("warning", f"{text}: it jumps upwards, which can undo what was learnt")
    else:
        yield Finding("note", text)


def _value(value: object) -> str:
    return "not given" if value is None else str(value)
