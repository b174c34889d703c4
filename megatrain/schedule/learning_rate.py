"""The learning rate as a pure function of a run's progress: a resumed run needs no state for it."""

from megatrain.base.progress import Progress
from megatrain.config import Config
from megatrain.schedule.registry import SCHEDULES


def learning_rate(progress: Progress, config: Config) -> float:
    """The rate of the optimizer step that comes after `progress`.

    Linear warm-up over warmup_steps, then the peak times the schedule's factor. Where the length of the run is given in
    tokens, the schedule goes by samples, so that a step of another batch size moves it on by what it reads; warm-up
    always counts steps, for it is the optimizer's moments that need them.
    """
    schedule, peak = config.schedule, config.optimizer.learning_rate
    if progress.step < schedule.warmup_steps:
        return peak * (progress.step + 1) / schedule.warmup_steps
    begin, now, end = _after_warmup(progress, config)
    done = min(1.0, (now - begin) / max(1, end - begin))
    return peak * SCHEDULES.get(schedule.name).factor(schedule, done)


def _after_warmup(progress: Progress, config: Config) -> tuple[int, int, int]:
    """Where warm-up ends, where the coming step does, and where the last one does: in samples or in steps."""
    warmup, size = config.schedule.warmup_steps, config.training.global_batch_size
    if config.training.tokens is None:
        return warmup, progress.step + 1, progress.step + config.steps_left(progress)
    after = progress.samples + size
    return progress.samples_at(warmup, size), after, progress.samples + size * config.steps_left(progress)
