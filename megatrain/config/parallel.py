"""`parallel:` how a model and its batches are laid out over ranks."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from megatrain.base.section import Section
from megatrain.base.types import AUTO, AutoCount, no_flag


class ParallelSection(Section):
    tensor_parallel: AutoCount = AUTO
    context_parallel: AutoCount = Field(AUTO, description="ranks that share each sequence; for long ones")
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], BeforeValidator(no_flag)] = AUTO
    zero_hpz_partition_size: AutoCount = Field(
        AUTO,
        description="ZeRO-3: replicas of a node that share a second copy of the weights (hpZ); 1: none",
    )
    sequence_parallel: bool | Literal["auto"] = Field(AUTO, description="split norms over the tensor-parallel ranks")
    activation_checkpointing: Literal["auto", "none", "selective", "full", "offload"] = Field(
        AUTO, description="what a block keeps for its backward pass; offload: as full, in the host's memory"
    )
    recompute_blocks: AutoCount | Literal["all"] = Field(
        AUTO, description="blocks that recompute, from the first; the others keep everything. auto: as few as fit"
    )
    offload_optimizer: Literal["auto", "none", "cpu"] = Field(
        AUTO, description="where ZeRO keeps fp32 weights and optimizer state, and updates: the GPU, or its host (cpu)"
    )
    compile: bool = Field(True, description="torch.compile each block")
