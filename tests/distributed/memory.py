"""What a rank of a real run holds in memory, by part: the bytes of every live tensor, from before the model is built to
the end of the second step."""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.planning.layout import Layout
from megatrain.config import ModelSection, PretrainConfig
from megatrain.model.families.llama.section import LlamaSection

STEPS = 2  # the first step makes what later ones keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model under a layout, small enough to run on this machine."""

    name: str
    model: ModelSection
    layout: Layout
    sequence_length: int
    precision: str

    def __str__(self) -> str:
        return f"{self.name}, {self.sequence_length} tokens, {self.precision}, {self.layout}"

    @property
    def config(self) -> PretrainConfig:
        layout = self.layout
        return PretrainConfig.model_validate(
            {
                "run": {"name": "memory"},
                "optimizer": layout.optimizer.model_dump(),
                "model": self.model.model_dump(),
                "data": {"sequence_length": self.sequence_length, "train": [{"path": "none"}]},
                "training": {
                    "steps": STEPS,
                    "global_batch_size": layout.micro_batch_size
                    * layout.gradient_accumulation_steps
                    * layout.data_parallel,
                    "micro_batch_size": layout.micro_batch_size,
                    "precision": self.precision,
                },
                "parallel": {
                    "tensor_parallel": layout.tensor_parallel,
                    "context_parallel": layout.context_parallel,
                    "zero_stage": layout.zero_stage,
                    "zero_hpz_partition_size": layout.zero_hpz_partition_size,
                    "sequence_parallel": layout.sequence_parallel,
                    "activation_checkpointing": layout.activation_checkpointing,
                    "recompute_blocks": layout.recompute_blocks or "all",
                    "offload_optimizer": layout.offload_optimizer,
                    "compile": False,
                },
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes on one rank. The parts are what stands between two steps; the peaks are of everything."""

    parameters: int
    gradients: int
    optimizer: int
    resting: int  # all that is allocated between two steps
    start: int  # peak until the weights have their values
    saved: int  # what a forward pass leaves for the backward pass
    forward: int  # peak while it runs
    backward: int
    step: int

    @property
    def peak(self) -> int:
        return max(self.start, self.forward, self.backward, self.step)

    @property
    def moment(self) -> str:
        return max(("forward", "backward", "step", "start"), key=lambda moment: getattr(self, moment))


def _model(layers: int, hidden: int, heads: int, kv: int, intermediate: int, vocabulary: int) -> ModelSection:
    return LlamaSection(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
    )


MODELS = {
    "narrow": _model(6, 256, 8, 4, 704, 1024),
    "wide": _model(2, 512, 8, 8, 1408, 4096),
    "vocabulary": _model(2, 256, 4, 2, 512, 16384),
    "deep": _model(12, 128, 4, 2, 384, 512),
}


def _cases() -> list[Case]:
    """Every ZeRO stage and way to recompute with every model; the rest takes turns."""
    cases = []
    turns = itertools.cycle(
        [  # tensor, data, sequence parallel, micro-batch, accumulation, length, precision
            (1, 2, False, 4, 1, 256, "bf16"),
            (2, 2, True, 2, 2, 512, "bf16"),
            (1, 2, False, 2, 2, 512, "fp32"),
            (2, 2, False, 4, 1, 256, "bf16"),
            (1, 4, False, 1, 1, 512, "bf16"),
            (2, 2, True, 4, 1, 256, "fp32"),
            (1, 2, False, 1, 4, 256, "bf16"),
        ]
    )
    for name, model in MODELS.items():
        for stage in (0, 1, 2, 3):
            for recompute in ("none", "selective", "full"):
                tensor, data, sequence, micro, steps, length, precision = next(turns)
                layout = Layout(
                    tensor_parallel=tensor,
                    data_parallel=data,
                    zero_stage=stage,
                    sequence_parallel=sequence,
                    micro_batch_size=micro,
                    gradient_accumulation_steps=steps,
                    activation_checkpointing=recompute,  # type: ignore[arg-type]
                )
                cases.append(Case(name=name, model=model, layout=layout, sequence_length=length, precision=precision))
    return cases + _shared_sequences()


def _some_blocks() -> list[Case]:
    """The first five of twelve blocks recompute."""
    cases = []
    for recompute, tensor, stage, precision in (("selective", 2, 1, "bf16"), ("full", 1, 3, "bf16")):
        layout = Layout(
            tensor_parallel=tensor,
            data_parallel=2 // tensor,
            zero_stage=stage,
            sequence_parallel=False,
            micro_batch_size=8,
            gradient_accumulation_steps=1,
            activation_checkpointing=recompute,  # type: ignore[arg-type]
            recompute_blocks=5,
        )
        cases.append(Case(name="deep", model=MODELS["deep"], layout=layout, sequence_length=512, precision=precision))
    return cases


def _shared_sequences() -> list[Case]:
    """Context parallelism, under every ZeRO stage."""
    turns = itertools.cycle(
        [  # model, tensor, recompute, precision
            ("narrow", 1, "none", "bf16"),
            ("wide", 2, "selective", "bf16"),
            ("wide", 1, "full", "bf16"),
            ("narrow", 1, "selective", "fp32"),
            ("narrow", 2, "none", "bf16"),
        ]
    )
    cases = []
    for stage in (0, 1, 2, 3, 1, 2, 3, 0):
        name, tensor, recompute, precision = next(turns)
        layout = Layout(
            tensor_parallel=tensor,
            context_parallel=2,
            data_parallel=2 // tensor,
            zero_stage=stage,
            sequence_parallel=tensor > 1,
            micro_batch_size=2,
            gradient_accumulation_steps=1 + stage % 2,
            activation_checkpointing=recompute,  # type: ignore[arg-type]
        )
        cases.append(Case(name=name, model=MODELS[name], layout=layout, sequence_length=512, precision=precision))
    return cases


SOME_BLOCKS = _some_blocks()
CASES = _cases() + SOME_BLOCKS
# inputs of blocks are copied, here from one place of the same memory to another
OFFLOADED = [
    replace(case, layout=replace(case.layout, activation_checkpointing="offload", recompute_blocks=blocks))
    for case, blocks in ((SOME_BLOCKS[0], 5), (SOME_BLOCKS[1], None))
]


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, each storage once.

    What an op allocates and releases within itself is not seen: the workspaces of gloo and of CPU kernels, which a GPU
    does not have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._sizes: dict[int, int] = {}  # by the storage's identity
        self._peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:  # a view of what no op was seen to make is of gloo's workspace
            for tensor in _tensors(out):
                self._see(tensor)
        return out

    def peak(self) -> int:
        """Since the last call."""
        peak, self._peak = self._peak, self.bytes
        return peak

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            self.bytes -= self._sizes[key]  # ZeRO-3 resizes what it has gathered
        else:
            weakref.finalize(storage, self._forget, key)
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self._peak = max(self._peak, self.bytes)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def measure(case: Case) -> Measured:
    """On every rank of a group, as `RankPool.run` calls it."""
    with LiveTensors() as live:
        engine, batch = _build(case)
        marks = {"start": live.peak()}
        engine._objective = SimpleNamespace(loss=_marked(engine._objective.loss, live, marks))
        tokens = case.config.training.global_batch_size * case.sequence_length
        for _ in range(STEPS):
            for _ in range(case.layout.gradient_accumulation_steps):
                engine.forward_backward(batch, tokens)
                marks["backward"] = live.peak()
                engine.step(1e-4)
                marks["step"] = live.peak()
        return Measured(**_parts(engine), resting=live.bytes, **marks)


def started(case: Case) -> tuple[int, int]:
    """On every rank: bytes at the peak of the start, and of that at the peak before DeepSpeed has the model."""
    from megatrain.train import build

    peaks: list[int] = []
    make = build.Engine

    def marked(*args: Any, **kwargs: Any) -> Any:
        peaks.append(live.peak())
        return make(*args, **kwargs)

    with LiveTensors() as live, patch.object(build, "Engine", marked):
        _build(case)
        return max(*peaks, live.peak()), peaks[0]


def _marked(forward: Any, live: LiveTensors, marks: dict[str, int]) -> Any:
    def marked(model: Any, batch: Any) -> Any:
        live.peak()
        before = live.bytes
        loss = forward(model, batch)
        marks.update(saved=live.bytes - before, forward=live.peak())
        return loss

    return marked


def _build(case: Case) -> tuple[Any, Any]:
    from launcher.deepspeed_config import deepspeed_config
    from megatrain.data.loading.batch import Batch
    from megatrain.parallel.mesh import Mesh
    from megatrain.tasks.causal_lm import CausalLM
    from megatrain.topology import Topology
    from megatrain.train.build import build_engine
    from megatrain.train.weights import initialize_weights

    config, layout = case.config, case.layout
    mesh = Mesh(
        Topology(
            world_size=layout.world_size,
            tensor_parallel=layout.tensor_parallel,
            context_parallel=layout.context_parallel,
        )
    )
    engine = build_engine(config, mesh, deepspeed_config(config, layout.world_size), CausalLM())
    initialize_weights(engine, config.model, 1)
    shape = (layout.micro_batch_size, case.sequence_length)
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % case.model.padded_vocab_size
    # causal attention without a mask: on a GPU the mask of documents takes next to nothing, on a CPU S × S
    batch = Batch(ids, ids, torch.arange(shape[1]).repeat(shape[0], 1))
    return engine, batch


def _parts(engine: Any) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state that DeepSpeed holds between two steps."""
    ds, optimizer = engine._engine, engine._engine.optimizer
    parameters = [getattr(p, "ds_tensor", p) for p in ds.module.parameters()]
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = [p for group in inner.param_groups for p in group["params"]]
    states = [v for state in inner.state.values() for v in state.values() if isinstance(v, Tensor)]
    weights = _storages(parameters)
    optimizer_bytes = {k: v for k, v in _storages(masters + states).items() if k not in weights}
    known = weights | optimizer_bytes
    gradients = [getattr(p, "grad", None) for p in ds.module.parameters()]
    for name in _GRADIENTS:
        gradients += list(_tensors(getattr(optimizer, name, None)))
    gradient_bytes = {k: v for k, v in _storages(gradients).items() if k not in known}
    return {
        "parameters": sum(weights.values()),
        "gradients": sum(gradient_bytes.values()),
        "optimizer": sum(optimizer_bytes.values()),
    }


_GRADIENTS = ("fp32_groups_gradients_flat", "averaged_gradients", "all_grad_tensors", "grad_partitions_flat_buffer")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from _tensors(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _tensors(below)


def _storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Address -> bytes, each storage once."""
    found = {}
    for tensor in tensors:
        if tensor is not None:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found
