"""The learning rate as a pure function of a run's progress: a resumed run needs no state for it."""

import math

from megatrain.base.progress import Progress
from megatrain.config import Config


def learning_rate(progress: Progress, config: Config) -> float:
    """The rate of the optimizer step that comes after `progress`.

    Linear warm-up over warmup_steps, then from the peak down to minimum_ratio × peak at the last step. Where the
    length of the run is given in tokens, the decay is over samples, so that a step of another batch size moves it on by
    what it reads; warm-up always counts steps, for it is the optimizer's moments that need them.
    """
    schedule, peak = config.schedule, config.optimizer.learning_rate
    if progress.step < schedule.warmup_steps:
        return peak * (progress.step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    begin, now, end = _decay(progress, config)
    done = min(1.0, (now - begin) / max(1, end - begin))
    remaining = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1.0 - done
    return peak * (schedule.minimum_ratio + (1.0 - schedule.minimum_ratio) * remaining)


def _decay(progress: Progress, config: Config) -> tuple[int, int, int]:
    """Where the decay begins, where the coming step ends, and where the last one does: in samples or in steps."""
    warmup, size = config.schedule.warmup_steps, config.training.global_batch_size
    if config.training.tokens is None:
        return warmup, progress.step + 1, progress.step + config.steps_left(progress)
    after = progress.samples + size
    return progress.samples_at(warmup, size), after, progress.samples + size * config.steps_left(progress)
