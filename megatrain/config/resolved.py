"""A run in which nothing is undecided: made once by the launcher, read by the ranks."""

from pathlib import Path
from typing import Annotated, Literal, overload

from pydantic import BeforeValidator, ValidationError, model_validator

from megatrain.base.errors import ConfigError
from megatrain.base.section import FIXED, FREE, REPORTED
from megatrain.base.types import AUTO, Count, Rate
from megatrain.config.chosen import AnyModel
from megatrain.config.cluster import ClusterSection
from megatrain.config.finetune import FinetuneSection
from megatrain.config.parallel import ParallelSection
from megatrain.config.runs import Config, FinetuneConfig, PretrainConfig
from megatrain.config.tokenizer import TokenizerSection
from megatrain.config.training import Precision, TrainingSection


def _all_unless_given(blocks: object) -> object:
    """A plan decides; without one, as in runs from before there was a choice, all do."""
    return "all" if blocks == AUTO else blocks


def _kept_unless_given(offload: object) -> object:
    """A run from before there was a choice offloads nothing."""
    return "none" if offload == AUTO else offload


def _no_copy_unless_given(size: object) -> object:
    """Likewise."""
    return 1 if size == AUTO else size


class ResolvedParallel(ParallelSection):
    tensor_parallel: Count
    context_parallel: Count
    zero_stage: Literal[0, 1, 2, 3]
    zero_hpz_partition_size: Annotated[Count, BeforeValidator(_no_copy_unless_given)] = 1
    sequence_parallel: bool
    activation_checkpointing: Literal["none", "selective", "full", "offload"]
    recompute_blocks: Annotated[Count | Literal["all"], BeforeValidator(_all_unless_given)] = "all"
    offload_optimizer: Annotated[Literal["none", "cpu"], BeforeValidator(_kept_unless_given)] = "none"


class ResolvedTraining(TrainingSection):
    micro_batch_size: Annotated[Count, FREE]
    precision: Precision = "bf16"


class ResolvedCluster(ClusterSection):
    peak_tflops: Rate


class ResolvedFinetuneSection(FinetuneSection):
    sequence_length: Count


class ResolvedPretrain(PretrainConfig):
    training: Annotated[ResolvedTraining, REPORTED]
    parallel: Annotated[ResolvedParallel, FREE]
    cluster: Annotated[ResolvedCluster, FREE]

    @model_validator(mode="after")
    def _model_is_complete(self) -> "ResolvedPretrain":
        _check_vocabulary(self.model.vocab_size)
        return self


class ResolvedFinetune(FinetuneConfig):
    finetune: Annotated[ResolvedFinetuneSection, FIXED]
    model: Annotated[AnyModel, FIXED]
    tokenizer: Annotated[TokenizerSection, FIXED]
    training: Annotated[ResolvedTraining, REPORTED]
    parallel: Annotated[ResolvedParallel, FREE]
    cluster: Annotated[ResolvedCluster, FREE]

    @model_validator(mode="after")
    def _model_is_complete(self) -> "ResolvedFinetune":
        _check_vocabulary(self.model.vocab_size)
        return self


ResolvedRun = ResolvedPretrain | ResolvedFinetune


@overload
def resolved(config: PretrainConfig, name: str | Path) -> ResolvedPretrain: ...
@overload
def resolved(config: FinetuneConfig, name: str | Path) -> ResolvedFinetune: ...
def resolved(config: Config, name: str | Path) -> ResolvedRun:
    """The same run as a type in which nothing is undecided.

    Args:
        name: of the file, in messages.

    Raises:
        ConfigError: something is.
    """
    kind = ResolvedPretrain if isinstance(config, PretrainConfig) else ResolvedFinetune
    try:
        return kind.model_validate(config.model_dump())
    except ValidationError as error:
        fields = sorted(
            {".".join(str(part) for part in item["loc"] if isinstance(part, str)) for item in error.errors()}
        )
        undecided = ", ".join(field for field in fields if field) or "model.vocab_size"
        raise ConfigError(f"{name}: is not of a run that was started: {undecided} is undecided") from None


def _check_vocabulary(size: int | str) -> None:
    if size == AUTO:
        raise ValueError("model.vocab_size is undecided")
