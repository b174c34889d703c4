"""The learning rate as a pure function of the step: a resumed run needs no state for it."""

import math

from megatrain.config import OptimizerSection, ScheduleSection


def learning_rate(step: int, total_steps: int, optimizer: OptimizerSection, schedule: ScheduleSection) -> float:
    """The rate of the optimizer step after `step` done ones.

    Linear warm-up over warmup_steps, then from the peak down to minimum_ratio × peak at the last step.
    """
    peak = optimizer.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    decay_steps = max(1, total_steps - schedule.warmup_steps)
    done = min(1.0, (step + 1 - schedule.warmup_steps) / decay_steps)
    remaining = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1.0 - done
    return peak * (schedule.minimum_ratio + (1.0 - schedule.minimum_ratio) * remaining)
