"""How long the steps of a run take that are left, whatever their sizes."""

from launcher.planning.plan_result import Plan
from megatrain.base.progress import Progress
from megatrain.config import Config


def run_seconds(config: Config, plan: Plan, progress: Progress | None = None) -> float:
    """Of the steps from `progress` on, default: from the start; without checkpoints and failures."""
    progress = progress or Progress()
    left, total = config.steps_left(progress), 0.0
    for _, size, there in config.training.batch_sizes.stretches(progress.samples):
        steps = left if there is None else min(left, there)
        total += steps * plan.seconds_of(size)
        left -= steps
    return total
