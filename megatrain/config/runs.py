"""A whole run, as frozen strict models: one class for each kind.

Fields whose type admits "auto" are decided by the launcher; ranks see a run in which none is left: config/resolved.py.
"""

from typing import Annotated

from pydantic import Field

from megatrain.base.progress import Progress
from megatrain.base.section import FIXED, FREE, REPORTED, Section
from megatrain.base.types import Module
from megatrain.config.checkpoint import CheckpointSection
from megatrain.config.chosen import AnyFinetuneTask, AnyModel, AnyOptimizer, AnyPretrainTask, AnySchedule
from megatrain.config.cluster import ClusterSection
from megatrain.config.continued import ContinuedSection
from megatrain.config.data import DataSection
from megatrain.config.evaluation import EvaluationSection
from megatrain.config.finetune import FinetuneSection
from megatrain.config.monitor import MonitorSection
from megatrain.config.parallel import ParallelSection
from megatrain.config.run import RunSection
from megatrain.config.slurm import SlurmSection
from megatrain.config.tokenizer import TokenizerSection
from megatrain.config.training import TrainingSection
from megatrain.optim.adamw import AdamWSection
from megatrain.schedule.cosine import CosineSection
from megatrain.tasks.pretrain_lm import PretrainLMSection
from megatrain.tasks.sft.section import SFTSection


class _Run(Section):
    extensions: Annotated[tuple[Module, ...], Field(strict=False, max_length=32), FREE] = Field(
        (), description="Python modules that register model families, optimizers, schedules, tasks, metrics or sinks"
    )
    run: Annotated[RunSection, FREE]
    optimizer: Annotated[AnyOptimizer, REPORTED] = AdamWSection()
    schedule: Annotated[AnySchedule, REPORTED] = CosineSection()
    training: Annotated[TrainingSection, REPORTED]
    parallel: Annotated[ParallelSection, FREE] = ParallelSection()
    checkpoint: Annotated[CheckpointSection, REPORTED] = CheckpointSection()
    evaluation: Annotated[EvaluationSection, REPORTED] = EvaluationSection()
    monitor: Annotated[MonitorSection, REPORTED] = MonitorSection()
    cluster: Annotated[ClusterSection, FREE] = ClusterSection()
    slurm: Annotated[SlurmSection, FREE] = SlurmSection()

    @property
    def sequence_length(self) -> int:
        raise NotImplementedError

    @property
    def tokens_per_step(self) -> int:
        """After a warm-up of the batch size."""
        return self.training.global_batch_size * self.sequence_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of a run that has these batch sizes from its first step to its last."""
        return self.steps_left(Progress())

    def steps_left(self, progress: Progress) -> int:
        """Optimizer steps from there to the end; a run given in tokens ends with the step that reaches them."""
        if self.training.steps is not None:
            return max(0, self.training.steps - progress.step)
        if self.training.tokens is None:
            raise ValueError("training.epochs is not resolved yet")
        last = -(-self.training.tokens // self.sequence_length)
        return self.training.batch_sizes.steps_until(progress.samples, last)

    def samples_left(self, progress: Progress) -> int:
        """Samples that those steps read."""
        return self.training.batch_sizes.after(progress.samples, self.steps_left(progress)) - progress.samples


class PretrainConfig(_Run):
    task: Annotated[AnyPretrainTask, FIXED] = PretrainLMSection()
    model: Annotated[AnyModel, FIXED]
    tokenizer: Annotated[TokenizerSection | None, FIXED] = None
    continued: Annotated[ContinuedSection | None, FIXED] = Field(
        None, description="start from a run's weights instead of the seed; model and tokenizer are then taken from it"
    )
    data: Annotated[DataSection, FIXED]  # which sample is at which position, and what it is

    @property
    def sequence_length(self) -> int:
        return self.data.sequence_length


class FinetuneConfig(_Run):
    task: Annotated[AnyFinetuneTask, FIXED] = SFTSection()
    finetune: Annotated[FinetuneSection, FIXED]
    model: Annotated[AnyModel | None, FIXED] = Field(None, description="taken from the base run")
    tokenizer: Annotated[TokenizerSection | None, FIXED] = Field(None, description="taken from the base run")

    @property
    def sequence_length(self) -> int:
        if self.finetune.sequence_length is None:
            raise ValueError("finetune.sequence_length is not resolved yet")
        return self.finetune.sequence_length


Config = PretrainConfig | FinetuneConfig
