"""Whole optimizer steps of one rank, through DeepSpeed: a ladder from eager to all that the planner would choose, each
rung a process of its own, against the planner's seconds and bytes."""

import os
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.measure import Recorder
from launcher.deepspeed_config import deepspeed_config
from launcher.planning.cost import estimate_step
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import ActivationCheckpointing, Layout
from launcher.planning.memory import estimate_memory
from megatrain.config import PretrainConfig
from megatrain.data.loading.batch import Batch
from megatrain.parallel.mesh import Mesh
from megatrain.tasks.causal_lm import CausalLM
from megatrain.topology import Topology
from megatrain.train.build import build_engine
from megatrain.train.weights import initialize_weights

TINYLLAMA = {
    "num_hidden_layers": 22, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632, "vocab_size": 32_000,
}  # fmt: skip
TOY = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 256,
}  # fmt: skip
RUNGS: dict[str, dict[str, Any]] = {
    "zero1 eager": {"compile": False},
    "zero1 compiled": {},
    "zero1 compiled documents": {"documents": 8},
    "zero1 compiled selective": {"checkpointing": "selective"},
    "zero2 compiled": {"zero_stage": 2},
    "zero3 compiled": {"zero_stage": 3},
}


class Trainer:
    """One rank that trains on random tokens."""

    def __init__(
        self,
        record: Recorder,
        *,
        zero_stage: int = 1,
        compile: bool = True,
        checkpointing: ActivationCheckpointing = "none",
        documents: int | None = None,
    ) -> None:
        toy = record.toy
        self.length, micro, self.accumulation = (32, 2, 2) if toy else (2048, 8, 4)
        self.compiled = compile and not toy
        self.layout = Layout(
            tensor_parallel=1,
            data_parallel=1,
            zero_stage=zero_stage,
            sequence_parallel=False,
            micro_batch_size=micro,
            gradient_accumulation_steps=self.accumulation,
            activation_checkpointing=checkpointing,
        )
        self.config = self._config(toy)
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo" if toy else "nccl", store=dist.HashStore(), rank=0, world_size=1)
        mesh = Mesh(Topology(world_size=1))
        self.engine = build_engine(
            self.config, mesh, deepspeed_config(self.config, 1), CausalLM(), device=record.device
        )
        initialize_weights(self.engine, self.config.model, self.config.run.seed)
        ids = torch.randint(0, self.config.model.padded_vocab_size, (micro, self.length))
        total = micro * self.length
        bounds = torch.linspace(0, total, micro * documents + 1).int() if documents else None
        self.batch = Batch(ids, ids, torch.arange(self.length).repeat(micro, 1), bounds)

    def step(self) -> None:
        for _ in range(self.accumulation):
            self.engine.forward_backward(self.batch, self.tokens)
            self.engine.step(1e-5)

    @property
    def tokens(self) -> int:
        return self.batch.input_ids.numel() * self.accumulation

    def close(self) -> None:
        dist.destroy_process_group()

    def _config(self, toy: bool) -> PretrainConfig:
        layout = self.layout
        return PretrainConfig.model_validate(
            {
                "run": {"name": "steps"},
                "model": TOY if toy else TINYLLAMA,
                "data": {"sequence_length": self.length, "train": [{"path": "none"}]},
                "training": {
                    "steps": 1,
                    "global_batch_size": layout.micro_batch_size * layout.gradient_accumulation_steps,
                    "micro_batch_size": layout.micro_batch_size,
                },
                "parallel": {
                    "tensor_parallel": 1,
                    "context_parallel": 1,
                    "zero_stage": layout.zero_stage,
                    "sequence_parallel": False,
                    "activation_checkpointing": layout.activation_checkpointing,
                    "compile": self.compiled,
                },
            }
        )


def measure(record: Recorder, rung: str) -> None:
    trainer = Trainer(record, **RUNGS[rung])
    milliseconds = record.milliseconds(trainer.step, repeats=2)
    peak = record.peak_bytes(trainer.step)
    reserved = None if record.toy else torch.cuda.max_memory_reserved()
    allocated = None if record.toy else torch.cuda.max_memory_allocated()
    model, hardware = trainer.config.model, load_hardware("cpu" if record.toy else "h100-sxm", 1)
    planned = {"sequence_length": trainer.length, "precision": "bf16", "hardware": hardware}
    seconds = estimate_step(model, trainer.layout, ranks_per_node=1, compiled=trainer.compiled, **planned).total
    memory = estimate_memory(model, trainer.layout, compiled=trainer.compiled, **planned)
    flops = model.flops_per_token(trainer.length) * trainer.tokens
    record.write(
        rung,
        ms=milliseconds,
        planned_ms=1e3 * seconds,
        tokens_per_second=1e3 * trainer.tokens / milliseconds,
        tflops=flops / milliseconds / 1e9,
        beyond_resting_bytes=peak,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        planned_bytes=memory.total,
    )
    trainer.close()


def main() -> None:
    rung = os.environ.get("RUNG")
    if rung:
        measure(Recorder("steps"), rung)
        return
    for name in RUNGS:  # DeepSpeed and the compiler keep state that a second engine would meet
        subprocess.run([sys.executable, "-m", "benchmarks.gpu.steps", *sys.argv[1:]], env={**os.environ, "RUNG": name})


if __name__ == "__main__":
    main()
