"""`training.batch_size_warmup:` smaller global batches at the start of a run."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from megatrain.base.section import Section
from megatrain.base.types import Count

if TYPE_CHECKING:
    from megatrain.config.training import TrainingSection


class BatchSizeStage(Section):
    until_sample: Count = Field(
        le=1 << 62, description="steps that begin before this sample, counted over the whole run, have this batch"
    )
    global_batch_size: Count = Field(le=10**9, description="sequences per optimizer step, over all ranks")


def warmup_stage_issues(training: "TrainingSection") -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each mistake: batches grow, stage after stage, in whole micro-batches."""
    stages, micro = training.batch_size_warmup, training.micro_batch_size
    before, sizes = 0, [*(stage.global_batch_size for stage in stages), training.global_batch_size]
    for number, (stage, (size, larger)) in enumerate(zip(stages, pairwise(sizes), strict=True)):
        name = f"training.batch_size_warmup.{number}"
        if stage.until_sample <= before:
            rule = f"is not after the stage before it ({before})"
            yield f"{name}.until_sample", stage.until_sample, rule, "Stages stand in the order of their samples."
        before = stage.until_sample
        if size >= larger:
            rule = f"is not below the batch after it ({larger})"
            yield f"{name}.global_batch_size", size, rule, "A warm-up grows up to training.global_batch_size."
        elif isinstance(micro, int) and size % micro:
            rule = f"is no multiple of training.micro_batch_size ({micro})"
            yield f"{name}.global_batch_size", size, rule, f"Try {max(1, round(size / micro)) * micro}."
