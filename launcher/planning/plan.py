"""A run and its cluster -> ranked layouts, and a reason for every one that cannot be.

Whatever the configuration fixes is a constraint; every `auto` is tried. How layouts are ranked: ranking.py.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, get_args

from launcher.planning.cluster import check_cluster
from launcher.planning.cost import StepTime, estimate_step, model_flops_utilization
from launcher.planning.hardware import GIB, load_hardware
from launcher.planning.hpz import hpz_sizes, why_hpz
from launcher.planning.layout import ActivationCheckpointing, Layout, OffloadOptimizer
from launcher.planning.legality import Run, first_violation
from launcher.planning.memory import USABLE, MemoryEstimate, estimate_memory, fits, host_usable
from launcher.planning.plan_result import NothingFitsError, Plan, PlanResult, Rejected, WarmupStep, nearest_misses
from launcher.planning.ranking import comfortable, rank_key
from launcher.planning.resolve import complete_model, complete_section
from launcher.planning.zero import releases_weights
from megatrain.config import AUTO, Config, PretrainConfig
from megatrain.config.regularization import passes_of
from megatrain.config.resolved import ResolvedRun, resolved
from megatrain.config.training import storage_precision
from megatrain.optim.registry import OPTIMIZERS
from megatrain.tasks.registry import TASKS

MOST_TENSOR_PARALLEL = 72  # the largest node there is with links between all of its GPUs
SHORTEST_PART = 2048  # tokens of a sequence for a context-parallel rank, where the planner chooses: few starve matmuls
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def make_plan(config: Config, *, world_size: int | None = None, gpus_alone: bool = False) -> PlanResult:
    """Try every layout that the configuration leaves open.

    Args:
        world_size: ranks, on one machine; default: the cluster's nodes × gpus_per_node.
        gpus_alone: what the configuration leaves open does not go to the host.

    Raises:
        NothingFitsError: none is legal and fits; a PreflightError.
        ConfigError, DataError: the model cannot be completed; see `inputs.complete_model`.
    """
    return _Planner(complete_model(config), world_size, gpus_alone).report()


def resolve(config: Config, plan: Plan) -> ResolvedRun:
    """The configuration with every `auto` decided, as the ranks read it."""
    return resolved(decided(config, plan), config.run.name)


def decided(config: Config, plan: Plan) -> Config:
    """As `resolve`, but the type is not told: for who only shows it."""
    config = complete_model(config)
    cluster = config.cluster
    if plan.world_size != cluster.nodes * cluster.gpus_per_node:
        cluster = cluster.model_copy(update={"nodes": 1, "gpus_per_node": plan.world_size})
    if cluster.peak_tflops == AUTO:
        peak = load_hardware(cluster.hardware, cluster.gpus_per_node).peak_tflops
        cluster = cluster.model_copy(update={"peak_tflops": peak})
    chosen = {
        "tensor_parallel": plan.tensor_parallel,
        "context_parallel": plan.context_parallel,
        "zero_stage": plan.zero_stage,
        "zero_hpz_partition_size": plan.layout.zero_hpz_partition_size,
        "sequence_parallel": plan.sequence_parallel,
        "activation_checkpointing": plan.activation_checkpointing,
        "offload_optimizer": plan.layout.offload_optimizer,
        "recompute_blocks": "all" if plan.layout.recompute_blocks is None else plan.layout.recompute_blocks,
    }
    update = {
        "cluster": cluster,
        "parallel": config.parallel.model_copy(update=chosen),
        "training": config.training.model_copy(update={"micro_batch_size": plan.micro_batch_size}),
    }
    return config.model_copy(update=update)


class _Planner:
    def __init__(self, config: Config, world_size: int | None, gpus_alone: bool) -> None:
        self.config, self.gpus_alone = config, gpus_alone
        self.model = complete_section(config)
        cluster = config.cluster
        self.world_size = world_size or cluster.nodes * cluster.gpus_per_node
        one_machine = world_size is not None or cluster.nodes == 1
        self.ranks_per_node = self.world_size if one_machine else cluster.gpus_per_node
        self.hardware = load_hardware(cluster.hardware, self.ranks_per_node)
        passes = passes_of(config)
        self.run = Run(
            model=self.model,
            world_size=self.world_size,
            ranks_per_node=self.ranks_per_node,
            global_batch_size=config.training.global_batch_size,
            warmup_batch_sizes=tuple(size for _, size in config.training.batch_sizes.stages),
            sequence_lengths=(config.sequence_length, *_phase_lengths(config)),
            precision=config.training.precision,
            whole_sequences=TASKS.get(config.task.name).whole_sequences,
            searches=passes.computed > passes.accumulated,
        )
        self.rejected: list[Rejected] = []
        check_cluster(config, self.model, self.hardware, self.ranks_per_node)

    def report(self) -> PlanResult:
        candidates: list[Plan] = []
        why = ""
        for optimizer, activations in self._offload_choices():
            why = nearest_misses(self.rejected)[0].reason if self.rejected else ""
            layouts = self._layouts(optimizer, self._recompute_choices(activations))
            if candidates := [plan for layout in layouts for plan in self._plans(layout)]:
                break
        if not candidates:
            raise NothingFitsError(self._nothing_fits(), self.rejected)
        candidates.sort(key=lambda plan: rank_key(plan, self.hardware))
        candidates[0] = replace(candidates[0], warmup=tuple(self._warmup(candidates[0].layout)))
        return PlanResult(
            chosen=candidates[0],
            candidates=candidates,
            rejected=self.rejected,
            hardware=self.hardware,
            why_offload=why,
            why_hpz=self._why_hpz(candidates[0]),
        )

    def _why_hpz(self, plan: Plan) -> str:
        if plan.layout.zero_hpz_partition_size == 1:
            return ""
        without = self._evaluate(replace(plan.layout, zero_hpz_partition_size=1))
        return why_hpz(plan, without, "the network" if self.world_size > self.ranks_per_node else "the node")

    def _offload_choices(self) -> list[tuple[OffloadOptimizer, bool]]:
        """Where the optimizer is, and whether activations leave for the host where that is open. In order: one is tried
        where nothing fits with those before it."""
        parallel, may = self.config.parallel, self.hardware.host is not None and not self.gpus_alone
        spec = OPTIMIZERS.get(self.config.optimizer.name)
        stays = spec.matrices is not None or spec.factored is not None  # see config/rules.py
        optimizer: tuple[OffloadOptimizer, ...] = ("none", "cpu") if may and not stays else ("none",)
        if parallel.offload_optimizer != AUTO:
            optimizer = (parallel.offload_optimizer,)
        activations = (False, True) if may and parallel.activation_checkpointing == AUTO else (False,)
        return [(one, other) for one in optimizer for other in activations]

    def _layouts(
        self, offload: OffloadOptimizer, recomputations: tuple[ActivationCheckpointing, ...]
    ) -> Iterator[Layout]:
        """Every legal layout; the others go to `rejected` as soon as enough of them is known to refuse them."""
        parallel = self.config.parallel
        stages = (0, 1, 2, 3) if parallel.zero_stage == AUTO else (parallel.zero_stage,)
        for context in self._model_ranks():
            both = context["tensor_parallel"] * context["context_parallel"]
            for data in self._legal(context, "data_parallel", [self.world_size // both]):
                for sequence in self._legal(data, "sequence_parallel", self._sequence_choices(data)):
                    for stage in self._legal({**sequence, "offload_optimizer": offload}, "zero_stage", stages):
                        for near in self._legal(stage, "zero_hpz_partition_size", self._hpz_sizes(stage)):
                            for micro in self._legal(near, "micro_batch_size", self._micro_batches(data)):
                                for recompute in recomputations:
                                    yield self._layout(micro, recompute)

    def _layout(self, known: dict[str, Any], recompute: ActivationCheckpointing) -> Layout:
        each = known["data_parallel"] * known["micro_batch_size"]
        return Layout(
            **known,
            gradient_accumulation_steps=self.config.training.global_batch_size // each,
            activation_checkpointing=recompute,
            recompute_blocks=self._fixed_blocks(recompute),
            optimizer=self.config.optimizer,
            passes=passes_of(self.config),
        )

    def _hpz_sizes(self, known: dict[str, Any]) -> tuple[int, ...]:
        tensor = known["tensor_parallel"]
        return hpz_sizes(
            self.config.parallel.zero_hpz_partition_size,
            releases=releases_weights(self.model, tensor),
            zero_stage=known["zero_stage"],
            replicas=self.world_size // tensor,
            replicas_of_node=max(1, self.ranks_per_node // tensor),
        )

    def _legal(self, known: dict[str, Any], field: str, values: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """`known` with each value of one more field that breaks no rule; the others are told once."""
        for value in values:
            choice = {**known, field: value}
            if found := first_violation(self.run, choice, known=known):
                if not any(rejected.fields == found[0] for rejected in self.rejected):
                    self._reject(*found)
            else:
                yield choice

    def _model_ranks(self) -> Iterator[dict[str, Any]]:
        """Every legal tensor-parallel size with every context-parallel size that is legal with it."""
        for tensor in self._legal({}, "tensor_parallel", self._tensor_sizes()):
            yield from self._legal(tensor, "context_parallel", self._context_sizes(tensor))

    def _context_sizes(self, known: dict[str, Any]) -> list[int]:
        fixed = self.config.parallel.context_parallel
        if fixed != AUTO:
            return [fixed]
        most = min(
            self.model.key_value_heads // known["tensor_parallel"], min(self.run.sequence_lengths) // SHORTEST_PART
        )
        each = self.world_size // known["tensor_parallel"]
        return [1, *(size for size in range(2, most + 1) if each % size == 0)]

    def _tensor_sizes(self) -> list[int]:
        fixed = self.config.parallel.tensor_parallel
        if fixed != AUTO:
            return [fixed]
        most = min(self.ranks_per_node, MOST_TENSOR_PARALLEL)
        return [size for size in range(1, most + 1) if self.ranks_per_node % size == 0]

    def _sequence_choices(self, known: dict[str, Any]) -> list[bool]:
        fixed = self.config.parallel.sequence_parallel
        if fixed != AUTO:
            return [fixed]
        return [False, True] if known["tensor_parallel"] > 1 else [False]

    def _recompute_choices(self, offload: bool) -> tuple[ActivationCheckpointing, ...]:
        fixed = self.config.parallel.activation_checkpointing
        if fixed != AUTO:
            return (fixed,)
        if offload:
            return ("offload",)
        left_out = {"offload", "none" if isinstance(self.config.parallel.recompute_blocks, int) else ""}
        return tuple(mode for mode in get_args(ActivationCheckpointing) if mode not in left_out)

    def _fixed_blocks(self, mode: ActivationCheckpointing) -> int | None:
        fixed = self.config.parallel.recompute_blocks
        return fixed if isinstance(fixed, int) and mode != "none" else None

    def _micro_batches(self, known: dict[str, Any]) -> list[int]:
        fixed = self.config.training.micro_batch_size
        each = math.gcd(*self.config.training.batch_sizes.every) // known["data_parallel"]
        if fixed != AUTO:
            return [fixed]
        if known["context_parallel"] > 1:
            return [1]  # sequences are shared by ranks where one is too much for a rank
        return [size for size in MICRO_BATCHES if each % size == 0]

    def _plans(self, layout: Layout) -> Iterator[Plan]:
        """Of a layout, if it fits; and of the same with as few blocks recomputing as fit."""
        plan = self._evaluate(layout)
        if plan is None:
            return
        yield plan
        fewest = self._fewest_blocks(plan) if self.config.parallel.recompute_blocks == AUTO else None
        if fewest is not None and (better := self._evaluate(fewest)) is not None:
            yield better

    def _fewest_blocks(self, plan: Plan) -> Layout | None:
        """None where no block need, or each must."""
        if plan.activation_checkpointing == "none":
            return None
        most = comfortable(self.hardware)
        most = most if plan.memory.total <= most else USABLE * self.hardware.memory_bytes
        first, last = 0, self.model.num_hidden_layers  # the fewest that fit lie in (first, last]
        if self._memory(replace(plan.layout, activation_checkpointing="none")).total <= most:
            return None
        while last - first > 1:
            middle = (first + last) // 2
            if self._memory(replace(plan.layout, recompute_blocks=middle)).total <= most:
                last = middle
            else:
                first = middle
        return replace(plan.layout, recompute_blocks=last) if last < self.model.num_hidden_layers else None

    def _memory(self, layout: Layout) -> MemoryEstimate:
        return estimate_memory(
            self.model,
            layout,
            sequence_length=self.config.sequence_length,
            precision=storage_precision(self.config.training.precision),
            hardware=self.hardware,
            compiled=self.config.parallel.compile,
        )

    def _evaluate(self, layout: Layout) -> Plan | None:
        length = self.config.sequence_length
        memory = self._memory(layout)
        if not fits(memory, self.hardware):
            over = memory.total - USABLE * self.hardware.memory_bytes
            over = max(over, memory.host - host_usable(self.hardware))
            self._reject(layout.to_json(), self._too_large(memory), over)
            return None
        time = self._time(layout)
        rate = self.config.tokens_per_step / time.total / self.world_size
        mfu = model_flops_utilization(
            self.model, sequence_length=length, tokens_per_second_per_gpu=rate, hardware=self.hardware
        )
        return Plan(layout=layout, memory=memory, time=time, tokens_per_second_per_gpu=rate, mfu=mfu)

    def _time(self, layout: Layout) -> StepTime:
        return estimate_step(
            self.model,
            layout,
            sequence_length=self.config.sequence_length,
            precision=self.config.training.precision,
            ranks_per_node=self.ranks_per_node,
            hardware=self.hardware,
            compiled=self.config.parallel.compile,
        )

    def _warmup(self, layout: Layout) -> Iterator[WarmupStep]:
        for size in self.run.warmup_batch_sizes:
            accumulation = size // (layout.data_parallel * layout.micro_batch_size)
            step = replace(layout, gradient_accumulation_steps=accumulation)
            yield WarmupStep(
                global_batch_size=size,
                gradient_accumulation_steps=accumulation,
                step_seconds=self._time(step).total,
            )

    def _reject(self, fields: dict[str, Any], reason: str, overshoot: float = float("inf")) -> None:
        self.rejected.append(Rejected(fields=fields, reason=reason, overshoot=overshoot))

    def _too_large(self, memory: MemoryEstimate) -> str:
        if memory.host > host_usable(self.hardware):
            available = host_usable(self.hardware) / GIB
            return f"needs {memory.host / GIB:.1f} GiB of its host per rank, and {available:.1f} GiB can be used"
        sizes = memory.to_json()
        total = sizes.pop("total")
        sizes.pop("host", None)
        parts = sorted(sizes.items(), key=lambda part: -part[1])[:2]
        largest = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts)
        usable = USABLE * self.hardware.memory_bytes / GIB
        when = " to start" if memory.peak == "start" else ""
        return f"needs {total / GIB:.1f} GiB per rank{when} ({largest}), and {usable:.1f} GiB can be used"

    def _nothing_fits(self) -> str:
        run, hardware = f"{self.world_size} × {self.hardware.name}", self.hardware
        nearest = nearest_misses(self.rejected)
        misses = "\n".join(f"nearest miss: {_describe(miss.fields)}: {miss.reason}" for miss in nearest)
        fix = "Free a fixed field (set it to auto)"
        if nearest and nearest[0].overshoot < float("inf"):
            fix += f", use more than {self.world_size} ranks, shorten the sequence, or take hardware with more than "
            fix += f"{hardware.memory_bytes / GIB:.0f} GiB"
        return f"no layout of this run on {run} is legal and fits. {fix}.\n{misses}"


def _phase_lengths(config: Config) -> list[int]:
    """Of the sequences that phases of the curriculum cut samples into."""
    phases = config.data.phases if isinstance(config, PretrainConfig) else ()
    return [phase.sequence_length for phase in phases if phase.sequence_length is not None]


def _describe(fields: dict[str, Any]) -> str:
    if "activation_checkpointing" in fields:
        return str(Layout(**fields))
    return ", ".join(f"{name}={value}" for name, value in fields.items())
