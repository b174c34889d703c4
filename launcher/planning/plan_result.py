"""What planning finds: layouts with their predictions, and why the others cannot be."""

from dataclasses import asdict, dataclass
from typing import Any

from launcher.planning.cost import StepTime
from launcher.planning.hardware import Hardware
from launcher.planning.layout import ActivationCheckpointing, Layout
from launcher.planning.memory import MemoryEstimate
from megatrain.base.errors import PreflightError


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupStep:
    """A step of a stage of training.batch_size_warmup."""

    global_batch_size: int
    gradient_accumulation_steps: int
    step_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout, and what is predicted of it."""

    layout: Layout
    memory: MemoryEstimate
    time: StepTime
    tokens_per_second_per_gpu: float
    mfu: float
    warmup: tuple[WarmupStep, ...] = ()  # of the plan that is chosen; all else is of the final batch size

    def seconds_of(self, global_batch_size: int) -> float:
        """Of a step of one of the run's batch sizes."""
        found = (step.step_seconds for step in self.warmup if step.global_batch_size == global_batch_size)
        return next(found, self.step_seconds)

    @property
    def tensor_parallel(self) -> int:
        return self.layout.tensor_parallel

    @property
    def context_parallel(self) -> int:
        return self.layout.context_parallel

    @property
    def data_parallel(self) -> int:
        return self.layout.data_parallel

    @property
    def world_size(self) -> int:
        return self.layout.world_size

    @property
    def zero_stage(self) -> int:
        return self.layout.zero_stage

    @property
    def sequence_parallel(self) -> bool:
        return self.layout.sequence_parallel

    @property
    def micro_batch_size(self) -> int:
        return self.layout.micro_batch_size

    @property
    def gradient_accumulation_steps(self) -> int:
        return self.layout.gradient_accumulation_steps

    @property
    def activation_checkpointing(self) -> ActivationCheckpointing:
        return self.layout.activation_checkpointing

    @property
    def step_seconds(self) -> float:
        return self.time.total

    def to_json(self) -> dict[str, Any]:
        return {
            **self.layout.to_json(),
            "memory_bytes": self.memory.to_json(),
            "memory_other_bytes": self.memory.other_to_json(),
            "memory_peak": self.memory.peak,
            "step_seconds": self.step_seconds,
            "seconds": self.time.to_json(),
            "tokens_per_second_per_gpu": self.tokens_per_second_per_gpu,
            "mfu": self.mfu,
        } | ({"batch_size_warmup": [asdict(step) for step in self.warmup]} if self.warmup else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A layout, or as much of one as was needed to refuse it."""

    fields: dict[str, Any]
    reason: str
    overshoot: float = float("inf")  # bytes beyond what fits; infinite where memory is not the reason

    def to_json(self) -> dict[str, Any]:
        return {**self.fields, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    chosen: Plan
    candidates: list[Plan]  # best first; the first is the chosen one
    rejected: list[Rejected]
    hardware: Hardware
    why_offload: str = ""  # what stood against the nearest layout without it, where the planner chose to offload
    why_hpz: str = ""  # what it brings, where the chosen layout has it

    def to_json(self) -> dict[str, Any]:
        return {
            "chosen": self.chosen.to_json(),
            "candidates": [plan.to_json() for plan in self.candidates],
            "rejected": [rejected.to_json() for rejected in self.rejected],
            **{name: getattr(self, name) for name in ("why_offload", "why_hpz") if getattr(self, name)},
        }


class NothingFitsError(PreflightError):
    """No layout is legal and fits; the text tells the three nearest misses."""

    def __init__(self, text: str, rejected: list[Rejected]) -> None:
        super().__init__(text)
        self.rejected = rejected

    def to_json(self) -> dict[str, Any]:
        rejected = [miss.to_json() for miss in self.rejected]
        nearest = [miss.to_json() for miss in nearest_misses(self.rejected)]
        return {"chosen": None, "candidates": [], "rejected": rejected, "nearest": nearest}


def nearest_misses(rejected: list[Rejected]) -> list[Rejected]:
    """The three that lack the least memory; where none is a question of memory, the first that were refused."""
    return sorted(rejected, key=lambda miss: miss.overshoot)[:3]
