"""Whole optimizer steps of one rank through DeepSpeed, each in a process of its own: a ladder from eager to all that
the planner would choose, then sizes and lengths, against the planner's seconds and bytes."""

import os
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.measure import Recorder, chosen
from benchmarks.gpu.models import config_of
from launcher.deepspeed_config import deepspeed_config
from launcher.planning.cost import estimate_step
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from launcher.planning.memory import estimate_memory
from megatrain.config.training import storage_precision
from megatrain.data.loading.batch import Batch
from megatrain.parallel.mesh import Mesh
from megatrain.tasks.causal_lm import CausalLM
from megatrain.topology import Topology
from megatrain.train.build import build_engine
from megatrain.train.weights import initialize_weights

ACCUMULATION = 4
DOCUMENT_TOKENS = 512  # of packed sequences, on average

RUNGS: dict[str, dict[str, Any]] = {
    "350M 2k": {},
    "350M 2k packed": {"packed": True},
    "1.3B 2k": {"model": "1.3B"},
    "125M 2k": {"model": "125M"},
    "1.3B 2k fp8": {"model": "1.3B", "precision": "fp8"},
    "350M 2k eager": {"compiled": False},
    "350M 2k zero3": {"zero_stage": 3},
    "350M 8k": {"length": 8192},
    "1.3B 8k packed": {"model": "1.3B", "length": 8192, "packed": True},
    "1.3B 2k packed": {"model": "1.3B", "packed": True},
    "125M 2k packed": {"model": "125M", "packed": True},
    "350M 2k zero2": {"zero_stage": 2},
    "350M 2k zero0": {"zero_stage": 0},
    "350M 2k selective": {"checkpointing": "selective"},
    "350M 2k full": {"checkpointing": "full"},
    "1.3B 8k": {"model": "1.3B", "length": 8192},
    "125M 8k": {"model": "125M", "length": 8192},
    "1.3B 2k zero3": {"model": "1.3B", "zero_stage": 3},
}


class Trainer:
    """One rank that trains on random tokens."""

    def __init__(
        self,
        device: torch.device,
        *,
        model: str = "350M",
        length: int = 2048,
        packed: bool = False,
        compiled: bool = True,
        **options: Any,
    ) -> None:
        self.length = length
        self.config = config_of(model, length=length, accumulation=ACCUMULATION, compiled=compiled, **options)
        backend = "gloo" if device.type == "cpu" else "nccl"
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        mesh = Mesh(Topology(world_size=1))
        self.engine = build_engine(self.config, mesh, deepspeed_config(self.config, 1), CausalLM(), device=device)
        initialize_weights(self.engine, self.config.model, self.config.run.seed)
        self.batch = self._batch(packed, pin=device.type != "cpu")
        self.tokens = self.batch.input_ids.numel() * ACCUMULATION

    def _batch(self, packed: bool, pin: bool) -> Batch:
        micro = self.config.training.micro_batch_size
        total = micro * self.length
        ids = torch.randint(0, self.config.model.padded_vocab_size, (micro, self.length))
        bounds = None
        if packed:  # documents end anywhere, and at the end of each sequence
            ends = torch.randint(1, total, (total // DOCUMENT_TOKENS,))
            bounds = torch.cat((ends, torch.arange(0, total + 1, self.length))).unique().int()
        batch = Batch(ids, ids.roll(-1, 1), torch.arange(self.length).repeat(micro, 1), bounds)
        return batch.pin_memory() if pin else batch

    @property
    def layout(self) -> Layout:
        parallel, training = self.config.parallel, self.config.training
        return Layout(
            tensor_parallel=1,
            data_parallel=1,
            zero_stage=parallel.zero_stage,
            sequence_parallel=False,
            micro_batch_size=training.micro_batch_size,
            gradient_accumulation_steps=ACCUMULATION,
            activation_checkpointing=parallel.activation_checkpointing,
        )

    def step(self) -> None:
        for _ in range(ACCUMULATION):
            self.engine.forward_backward(self.batch, self.tokens)
            self.engine.step(1e-5)

    def close(self) -> None:
        dist.destroy_process_group()


def measure(record: Recorder, rung: str) -> None:
    toy = {"model": "toy", "length": 32, "compiled": False} if record.toy else {}
    trainer = Trainer(record.device, **RUNGS[rung] | toy)
    milliseconds = record.milliseconds(trainer.step, repeats=3)
    model, hardware = trainer.config.model, load_hardware("cpu" if record.toy else "h100-sxm", 1)
    compiled, precision = bool(trainer.config.parallel.compile), trainer.config.training.precision
    planned = {"sequence_length": trainer.length, "hardware": hardware, "compiled": compiled}
    record.write(
        rung,
        contestant="megatrain",
        parameters=model.parameters,
        tokens=trainer.tokens,
        **record.rates(milliseconds, trainer.tokens, model.flops_per_token(trainer.length)),
        **record.memory(),
        planned_ms=1e3 * estimate_step(model, trainer.layout, precision=precision, ranks_per_node=1, **planned).total,
        planned_bytes=estimate_memory(model, trainer.layout, precision=storage_precision(precision), **planned).total,
    )
    trainer.close()


def main() -> None:
    rung = os.environ.get("RUNG")
    if rung:
        record = Recorder("steps")
        record.attempt(rung, lambda: measure(record, rung))
        return
    for name in chosen(RUNGS):  # a process each: an engine and a compiler leave state that a second would meet
        subprocess.run([sys.executable, "-m", "benchmarks.gpu.steps", *sys.argv[1:]], env={**os.environ, "RUNG": name})


if __name__ == "__main__":
    main()
