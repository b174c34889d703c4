"""`training:` how long, in which batches and numbers."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import FREE, Section
from megatrain.base.types import AUTO, AutoCount, Count


class TrainingSection(Section):
    tokens: Count | None = Field(None, description="length of the run; or give steps")
    steps: Count | None = Field(None, description="length of the run in optimizer steps; or give tokens")
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="length of a fine-tuning in passes over its examples; or give tokens or steps"
    )
    global_batch_size: Count = Field(le=10**9, description="sequences per optimizer step, over all ranks")
    micro_batch_size: Annotated[AutoCount, FREE] = Field(AUTO, description="sequences per rank and pass")
    deterministic: bool = Field(
        False, description="the same bits at every start, also on a GPU: slower kernels that add in a fixed order"
    )
    precision: Literal["bf16", "fp32", "auto"] = Field("bf16", description="auto: what the hardware multiplies fastest")
