"""The sizes of a run's steps, in words."""

from megatrain.base.progress import Progress
from megatrain.config.runs import Config


def steps_in_words(config: Config, progress: Progress | None = None) -> str:
    """Of the steps that are left: such as "4,769 steps of 524,288", in tokens; the smallest and the largest where the
    batch size is warmed up."""
    progress = progress or Progress()
    steps = config.steps_left(progress)
    begun = progress.samples
    first = config.training.batch_sizes.at(begun)
    last = config.training.batch_sizes.step_of(max(begun, begun + config.samples_left(progress) - 1), begun)[1]
    sizes = [f"{size * config.sequence_length:,}" for size in dict.fromkeys((first, last))]
    return f"{steps:,} steps of {' to '.join(sizes)}"
