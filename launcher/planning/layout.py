"""How a run is laid over its ranks: the numbers that the planner chooses."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from megatrain.config.regularization import Passes
from megatrain.optim.adamw import AdamWSection
from megatrain.optim.registry import OptimizerSection

ActivationCheckpointing = Literal["none", "selective", "full", "offload"]
OffloadOptimizer = Literal["none", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to run; `data_parallel × context_parallel × tensor_parallel` ranks."""

    tensor_parallel: int
    context_parallel: int = 1
    data_parallel: int
    zero_stage: int
    sequence_parallel: bool
    micro_batch_size: int
    gradient_accumulation_steps: int
    activation_checkpointing: ActivationCheckpointing
    recompute_blocks: int | None = None  # the first so many blocks do; None: all
    offload_optimizer: OffloadOptimizer = "none"
    zero_hpz_partition_size: int = 1  # replicas that keep a second copy of the weights between them; 1: none
    # not choices: the run's
    optimizer: OptimizerSection = field(default_factory=AdamWSection)
    passes: Passes = field(default_factory=Passes)

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.context_parallel * self.data_parallel

    @property
    def replicas(self) -> int:
        """Ranks that hold the same slices of the weights; ZeRO partitions over them."""
        return self.context_parallel * self.data_parallel

    @property
    def with_passes(self) -> "Layout":
        """A layout without regularisation whose passes are those of this one."""
        steps = self.gradient_accumulation_steps * self.passes.computed
        return replace(
            self, gradient_accumulation_steps=steps, micro_batch_size=self.micro_batch_size * self.passes.copies
        )

    def recomputing(self, blocks: int) -> int:
        """How many of a model's blocks recompute."""
        if self.activation_checkpointing == "none":
            return 0
        return blocks if self.recompute_blocks is None else self.recompute_blocks

    @property
    def recomputes_all(self) -> bool:
        """Whether blocks that recompute do so from their input, wherever that is."""
        return self.activation_checkpointing in ("full", "offload")

    @property
    def on_host(self) -> str:
        """What is offloaded, in words."""
        activations = "activations" if self.activation_checkpointing == "offload" else ""
        return " and ".join(filter(None, (activations, "optimizer" if self.offload_optimizer == "cpu" else "")))

    def to_json(self) -> dict[str, Any]:
        names = (name for name in self.__dataclass_fields__ if name not in ("optimizer", "passes"))
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        sequence = " + sequence" if self.sequence_parallel else ""
        of_blocks = "" if self.recompute_blocks is None else f" of {self.recompute_blocks} blocks"
        offload = f", {self.on_host} on the host" if self.on_host else ""
        zero = f"ZeRO-{self.zero_stage}"
        zero += f" (hpZ {self.zero_hpz_partition_size})" if self.zero_hpz_partition_size > 1 else ""
        recompute = "full" if self.recomputes_all else self.activation_checkpointing
        context = f"context {self.context_parallel}, " if self.context_parallel > 1 else ""
        return (
            f"{zero}, tensor {self.tensor_parallel}{sequence}, {context}data {self.data_parallel}, "
            f"micro-batch {self.micro_batch_size} × {self.gradient_accumulation_steps}, "
            f"{recompute} recompute{of_blocks}{offload}"
        )
