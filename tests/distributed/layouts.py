"""A tiny run, trained under a named layout, and the plain process that it must agree with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from megatrain.config import ModelSection, PretrainConfig
from megatrain.model.families.llama.section import LlamaSection
from megatrain.optim.adamw import AdamWSection
from tests.documents import cu_seqlens_of

if TYPE_CHECKING:
    from megatrain.checkpoint.snapshot import Snapshot
    from megatrain.checkpoint.store import CheckpointStore
    from megatrain.data.loading.batch import Batch
    from megatrain.optim.registry import OptimizerSection
    from megatrain.tasks.causal_lm import CausalLM

STEPS = 20
GLOBAL_BATCH = 8
SEQUENCE = 32
RATE = 3e-3


@dataclass(frozen=True)
class Layout:
    zero: int
    tensor: int
    data: int
    precision: str = "fp32"
    sequence_parallel: bool = False
    checkpointing: str = "none"
    compile: bool = False
    micro_batch: int = 2
    tied: bool = False
    context: int = 1
    offload: str = "none"
    hpz: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor * self.context * self.data

    def __str__(self) -> str:
        parts = [f"zero{self.zero}-tp{self.tensor}-dp{self.data}-{self.precision}"]
        parts += [word for word, on in (("sp", self.sequence_parallel), ("compile", self.compile)) if on]
        parts += [self.checkpointing] if self.checkpointing != "none" else []
        parts += ["tied"] if self.tied else []
        parts += [f"cp{self.context}"] if self.context > 1 else []
        parts += ["offload"] if self.offload != "none" else []
        parts += [f"hpz{self.hpz}"] if self.hpz > 1 else []
        parts += [f"mb{self.micro_batch}"] if self.micro_batch != 2 else []
        return "-".join(parts)


def model_section(tied: bool = False) -> ModelSection:
    # 72 and 3 layers make ranges of ZeRO partitions end inside rows, and inside parameters
    return LlamaSection(
        num_hidden_layers=3,
        hidden_size=72,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=88,
        vocab_size=256,
        tie_word_embeddings=tied,
    )


def config_of(layout: Layout) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "run": {"name": "tiny", "seed": 5},
            "model": model_section(layout.tied).model_dump(),
            "data": {"sequence_length": SEQUENCE, "train": [{"path": "none"}]},
            "cluster": {"peak_tflops": 1.0},
            "optimizer": {"learning_rate": RATE},
            "training": {
                "steps": STEPS,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": layout.micro_batch,
                "precision": layout.precision,
            },
            "parallel": {
                "tensor_parallel": layout.tensor,
                "context_parallel": layout.context,
                "zero_stage": layout.zero,
                "zero_hpz_partition_size": layout.hpz,
                "sequence_parallel": layout.sequence_parallel,
                "activation_checkpointing": layout.checkpointing,
                "compile": layout.compile,
                "offload_optimizer": layout.offload,
            },
        }
    )


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Learnable data that all layouts see alike: input ids and labels, [GLOBAL_BATCH, SEQUENCE]."""
    generator = torch.Generator().manual_seed(100 + step)
    start = torch.randint(0, 256, (GLOBAL_BATCH, 1), generator=generator)
    ids = (start + 7 * torch.arange(SEQUENCE + 1)) % 256
    noise = torch.randint(0, 256, ids.shape, generator=generator)
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, noise, ids)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def documents() -> torch.Tensor:
    """Two documents in every sequence, int32 [GLOBAL_BATCH, SEQUENCE]."""
    return (torch.arange(SEQUENCE) >= 11).int().expand(GLOBAL_BATCH, -1).contiguous()


class Run:
    """One rank of a tiny run: an engine, and its share of the global batches."""

    def __init__(
        self,
        layout: Layout,
        optimizer: "OptimizerSection | None" = None,
        objective: "CausalLM | None" = None,
        model: ModelSection | None = None,
    ) -> None:
        from launcher.deepspeed_config import deepspeed_config
        from megatrain.parallel.mesh import Mesh
        from megatrain.tasks.causal_lm import CausalLM
        from megatrain.topology import Topology
        from megatrain.train.build import build_engine
        from megatrain.train.weights import initialize_weights

        self.layout = layout
        config = config_of(layout)
        if optimizer is not None:
            config = config.model_copy(update={"optimizer": optimizer})
        if model is not None:
            config = config.model_copy(update={"model": model})
        topology = Topology(
            world_size=layout.world_size, tensor_parallel=layout.tensor, context_parallel=layout.context
        )
        self.config = config
        self.mesh = Mesh(topology)
        self.engine = build_engine(
            config, self.mesh, deepspeed_config(config, layout.world_size), objective or CausalLM()
        )
        initialize_weights(self.engine, config.model, config.run.seed)

    def micro_batches(self, step: int) -> Iterator["Batch"]:
        """This rank's share of a global batch."""
        from megatrain.data.loading.batch import Batch

        ids, labels = global_batch(step)
        per_rank, size = GLOBAL_BATCH // self.layout.data, self.layout.micro_batch
        for at in range(self.mesh.data_rank * per_rank, (self.mesh.data_rank + 1) * per_rank, size):
            rows = slice(at, at + size)
            yield Batch(
                ids[rows], labels[rows], torch.arange(SEQUENCE).repeat(size, 1), cu_seqlens_of(documents()[rows])
            )

    def train(self, first: int, last: int) -> list[tuple[float, float]]:
        """Loss and gradient norm of steps [first, last)."""
        import torch.distributed as dist

        measured = []
        targets = GLOBAL_BATCH * SEQUENCE
        for step in range(first, last):
            loss = torch.zeros(())
            for batch in self.micro_batches(step):
                loss += self.engine.forward_backward(batch, targets).loss
                norm = self.engine.step(rate_at(step))
            dist.all_reduce(loss, group=self.mesh.dp_cp_group)
            measured.append((loss.item() / targets, norm))
        return measured


def snapshot_of(run: Run, step: int) -> "Snapshot":
    from megatrain.checkpoint.snapshot import Snapshot
    from megatrain.checkpoint.state import State

    state = State(step=step, model=config_of(run.layout).model)
    return Snapshot(state, run.engine.sharded_state(for_saving=True))


def store_of(run: Run, folder: str) -> "CheckpointStore":
    from megatrain.checkpoint.store import CheckpointStore
    from megatrain.run.directory import RunDir

    group = run.mesh.control_group
    return CheckpointStore(RunDir(folder), group, layout=str(run.layout), keep_last=9, report=print)


def rate_at(step: int) -> float:
    return RATE * min(1.0, (step + 1) / 4)


def adamw_of(model: torch.nn.Module, section: ModelSection) -> list[torch.optim.Optimizer]:
    config = AdamWSection(learning_rate=RATE)
    decay, plain = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=RATE, betas=config.betas, eps=config.eps, foreach=False)]


def plain_run(
    precision: str,
    tied: bool = False,
    section: ModelSection | None = None,
    steps: int = STEPS,
    nudge: int = 0,
    optimizers_of: Callable[[torch.nn.Module, ModelSection], list[torch.optim.Optimizer]] = adamw_of,
) -> list[tuple[float, float]]:
    """The reference: one process, no DeepSpeed, no fused ops but torch's own; fp32 master weights.

    Args:
        nudge: where not 0, every initial weight is moved by about one rounding, a relative 6e-8, drawn from this seed.
    """
    from megatrain.model.architecture import row_of
    from megatrain.model.build import build_model
    from megatrain.model.initialization import initial_weight, materialize

    section = section or model_section(tied)
    with torch.device("meta"):
        model = build_model(section)
    generator = torch.Generator().manual_seed(nudge)

    def initial(name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        weight = initial_weight(row_of(section, name), 5)
        return weight * (1 + 2**-24 * torch.randn(weight.shape, generator=generator)) if nudge else weight

    materialize(model, initial)
    optimizers = optimizers_of(model, section)
    measured = []
    for step in range(steps):
        ids, labels = global_batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(ids, cu_seqlens=cu_seqlens_of(documents()))
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), AdamWSection(learning_rate=RATE).gradient_clipping)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
        measured.append((loss.item(), norm.item()))
    return measured


def trained(layout: Layout, steps: int = STEPS) -> list[tuple[float, float]]:
    return Run(layout).train(0, steps)


def evaluated(layout: Layout) -> tuple[float, float]:
    """Loss and target tokens of two global batches, as an evaluation finds them; some positions have no target."""
    from megatrain.train.evaluation import evaluate

    run = Run(layout)
    batches = [batch for step in (0, 1) for batch in run.micro_batches(step)]
    for batch in batches:
        batch.labels[:, :5] = -100
    sums, _ = evaluate(run.engine, batches)
    return sums["loss"] / sums["targets"], sums["targets"]
