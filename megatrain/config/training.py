"""`training:` how long, in which batches and numbers."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.section import FREE, Section
from megatrain.base.types import AUTO, AutoCount, Count
from megatrain.config.batch_size_warmup import BatchSizeStage
from megatrain.config.early_stopping import EarlyStoppingSection

Precision = Literal["bf16", "fp32", "fp8"]


def storage_precision(precision: str) -> Literal["bf16", "fp32"]:
    """Of weights and activations: fp8 is what bf16 ones are rounded to when they are multiplied."""
    return "fp32" if precision == "fp32" else "bf16"


class TrainingSection(Section):
    tokens: Count | None = Field(None, description="length of the run; or give steps")
    steps: Count | None = Field(None, description="length of the run in optimizer steps; or give tokens")
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="length of a fine-tuning in passes over its examples; or give tokens or steps"
    )
    global_batch_size: Count = Field(le=10**9, description="sequences per optimizer step, over all ranks")
    batch_size_warmup: Annotated[tuple[BatchSizeStage, ...], Field(strict=False, max_length=64)] = Field(
        (), description="smaller global batches before, in the order of their samples"
    )
    micro_batch_size: Annotated[AutoCount, FREE] = Field(AUTO, description="sequences per rank and pass")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability: of what each layer adds to the residual stream, in training alone"
    )
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability: of what enters the first block, in training alone"
    )
    early_stopping: EarlyStoppingSection | None = Field(
        None, description="end the run where its evaluations get no better; the best checkpoint is kept"
    )
    deterministic: bool = Field(
        False, description="the same bits at every start, also on a GPU: slower kernels that add in a fixed order"
    )
    precision: Literal["bf16", "fp32", "fp8", "auto"] = Field(
        "bf16",
        description="fp8: bf16, and linear layers multiply in fp8; auto: bf16 or fp32, what the hardware does faster",
    )
    fp8_scaling: Literal["tensorwise", "rowwise"] = Field(
        "tensorwise", description="of precision fp8: a scale per tensor, the faster; or per row, the more exact"
    )

    @property
    def batch_sizes(self) -> BatchSizes:
        """Of every step."""
        stages = tuple((stage.until_sample, stage.global_batch_size) for stage in self.batch_size_warmup)
        return BatchSizes(self.global_batch_size, stages)
