"""A contestant is built, warmed up, and then takes one optimizer step whenever it is told to; each in a process of its
own, so that none meets another's compiler, allocator or threads.

All get the same ids as labels; megatrain takes the next token's itself, transformers shifts them.
"""

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.train.shape import BETAS, CLIPPING, DECAY, EPS, RATE, Shape

Step = Callable[[], Any]
Precision = str  # "fp32", or "bf16": megatrain keeps weights in bf16 under fp32 masters, the others run autocast


def megatrain(shape: Shape, precision: Precision) -> Step:
    """One rank of ZeRO-1, through DeepSpeed."""
    from launcher.deepspeed_config import deepspeed_config
    from megatrain.data.loading.batch import Batch
    from megatrain.parallel.mesh import Mesh
    from megatrain.tasks.causal_lm import CausalLM
    from megatrain.topology import Topology
    from megatrain.train.build import build_engine
    from megatrain.train.weights import initialize_weights

    _join()
    config, mesh = shape.config(precision), Mesh(Topology(world_size=1))
    engine = build_engine(config, mesh, deepspeed_config(config, 1), CausalLM())
    assert type(engine._engine).__name__ == "DeepSpeedEngine"
    initialize_weights(engine, config.model, config.run.seed)
    ids = shape.ids()
    batch = Batch(ids, ids.roll(-1, 1), torch.arange(shape.length).repeat(shape.micro_batch, 1), None)

    def step() -> None:
        for _ in range(shape.accumulation):
            engine.forward_backward(batch, shape.tokens)
            engine.step(RATE)

    return step


def plain(shape: Shape, precision: Precision) -> Step:
    """megatrain's model, its blocks compiled, in a loop without a framework, engine or DeepSpeed: what these cost."""
    from megatrain.model.build import build_model
    from megatrain.parallel.compile import compile_blocks

    model = build_model(shape.section)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    compile_blocks(model)
    ids = shape.ids()
    labels = ids.roll(-1, 1)
    return _loop(model, lambda: model(ids, labels) / labels.numel(), shape, precision)


def transformers_loop(shape: Shape, precision: Precision) -> Step:
    """transformers' Llama, compiled as a whole, in a plain loop."""
    model = shape.transformers_model()
    compiled, ids = torch.compile(model), shape.ids()
    return _loop(model, lambda: compiled(input_ids=ids, labels=ids).loss, shape, precision)


def fsdp2(shape: Shape, precision: Precision) -> Step:
    """torchtitan's way: blocks compiled, then torch's fully_shard, which casts to bf16 where asked."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    _join()
    model, ids = shape.transformers_model(), shape.ids()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if precision == "bf16" else MixedPrecisionPolicy()
    for layer in model.model.layers:
        layer.compile()
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return _loop(model, lambda: model(input_ids=ids, labels=ids).loss, shape, "fp32")


def _loop(model: nn.Module, loss_of: Callable[[], Tensor], shape: Shape, precision: Precision) -> Step:
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decay, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)

    def step() -> None:
        for _ in range(shape.accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of()
            (loss / shape.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _join() -> None:
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def trainer(shape: Shape, precision: Precision, told: Connection, tell: Callable[[], None], deepspeed: bool) -> None:
    """Hugging Face's Trainer with torch.compile and fused AdamW; or through accelerate and DeepSpeed, ZeRO-1. It takes
    a step per message; a message of None ends it."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if told.recv() is None:
                raise KeyboardInterrupt

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert (type(running.model_wrapped).__name__ == "DeepSpeedEngine") is deepspeed

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell()

    if deepspeed:
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
    settings = {
        "zero_optimization": {"stage": 1}, "bf16": {"enabled": precision == "bf16"}, "gradient_clipping": CLIPPING,
        "train_micro_batch_size_per_gpu": shape.micro_batch, "gradient_accumulation_steps": shape.accumulation,
        "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
    }  # fmt: skip
    arguments = TrainingArguments(
        output_dir="/tmp/trainer", max_steps=10**6, per_device_train_batch_size=shape.micro_batch,
        gradient_accumulation_steps=shape.accumulation, bf16=precision == "bf16", use_cpu=True,
        optim="adamw_torch_fused", torch_compile=True, learning_rate=RATE, weight_decay=DECAY, adam_beta2=BETAS[1],
        max_grad_norm=CLIPPING, lr_scheduler_type="constant", logging_steps=10**6, save_strategy="no", report_to=[],
        disable_tqdm=True, deepspeed=settings if deepspeed else None,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in shape.ids()] * 1000
    running = Trainer(model=shape.transformers_model(), args=arguments, train_dataset=rows, callbacks=[Turns()])
    running.train()


STEPS: dict[str, Callable[[Shape, Precision], Step]] = {
    "megatrain": megatrain,
    "plain loop, megatrain's model": plain,
    "plain loop, transformers": transformers_loop,
    "FSDP2, transformers": fsdp2,
}
TRAINERS = {"Trainer": False, "Trainer, accelerate, DeepSpeed": True}
