"""The learning rate as a pure function of a run's progress: a resumed run needs no state for it."""

from megatrain.base.progress import Progress
from megatrain.config import Config
from megatrain.schedule.registry import SCHEDULES, Place


def learning_rate(progress: Progress, config: Config) -> float:
    """The rate of the optimizer step that comes after `progress`.

    Linear warm-up over warmup_steps, then the peak times the schedule's factor. Where the length of the run is given in
    tokens, the schedule goes by samples, so that a step of another batch size moves it on by what it reads; warm-up
    always counts steps, for it is the optimizer's moments that need them.
    """
    schedule, peak = config.schedule, config.optimizer.learning_rate
    if progress.step < schedule.warmup_steps:
        return peak * (progress.step + 1) / schedule.warmup_steps
    return peak * SCHEDULES.get(schedule.name).factor(schedule, _place(progress, config))


def _place(progress: Progress, config: Config) -> Place:
    warmup, sizes = config.schedule.warmup_steps, config.training.batch_sizes
    branch = config.run.branch
    if config.training.tokens is None:
        left = branch.step if branch else 0
        return Place(warmup, progress.step + 1, progress.step + config.steps_left(progress), left)
    end = progress.samples + config.samples_left(progress)
    left = branch.samples if branch else 0
    return Place(progress.samples_at(warmup, sizes), sizes.after(progress.samples), end, left)
