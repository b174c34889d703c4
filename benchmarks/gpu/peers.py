"""The same models, tokens and optimizer by what the field uses on one GPU, each in a process of its own: transformers'
Llama in a plain loop, and under Hugging Face's Trainer at its best settings: torch.compile, autocast to bf16, fused
AdamW; also with Liger's kernels."""

import os
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import ROUNDS, Recorder, chosen
from benchmarks.gpu.models import config_of
from benchmarks.gpu.steps import ACCUMULATION

RUNGS: dict[str, dict[str, Any]] = {
    "350M 2k, plain loop": {},
    "350M 2k, Trainer": {"trainer": True},
    "350M 2k, Trainer and Liger": {"trainer": True, "liger": True},
    "1.3B 2k, plain loop": {"model": "1.3B"},
    "1.3B 2k, Trainer": {"model": "1.3B", "trainer": True},
    "125M 2k, plain loop": {"model": "125M"},
    "125M 2k, Trainer": {"model": "125M", "trainer": True},
    "350M 8k, plain loop": {"length": 8192},
    "1.3B 8k, plain loop": {"model": "1.3B", "length": 8192},
}
STEPS_BEFORE, STEPS = 4, 3 * ROUNDS
RATE = 1e-5


class Peer:
    def __init__(self, record: Recorder, *, model: str = "350M", length: int = 2048) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        model, self.length = ("toy", 32) if record.toy else (model, length)
        ours = config_of(model, length=self.length, accumulation=ACCUMULATION)
        self.section, self.micro, self.record = ours.model, ours.training.micro_batch_size, record
        shape = self.section.model_dump()
        fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        config = LlamaConfig(
            **{field: shape[field] for field in fields},
            vocab_size=self.section.padded_vocab_size,
            tie_word_embeddings=True,
            max_position_embeddings=self.length,
            use_cache=False,
            attn_implementation="sdpa",
        )
        with record.device:
            self.model = LlamaForCausalLM(config)
        self.ids = torch.randint(0, self.section.padded_vocab_size, (self.micro, self.length))
        self.tokens = self.ids.numel() * ACCUMULATION

    def plain(self) -> float:
        """Milliseconds per step of a loop without a framework."""
        model = self.model if self.record.toy else torch.compile(self.model)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        ids = self.ids.to(self.record.device)

        def step() -> None:
            for _ in range(ACCUMULATION):
                with torch.autocast(self.record.device.type, torch.bfloat16):
                    loss: Tensor = model(input_ids=ids, labels=ids).loss
                (loss / ACCUMULATION).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self.record.milliseconds(step, repeats=3)

    def trainer(self, liger: bool) -> float:
        """Milliseconds per step under Hugging Face's Trainer; the first steps, which compile, are left out."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        synchronize = self.record.synchronize

        class Clock(TrainerCallback):
            began = ended = 0.0

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == STEPS_BEFORE:
                    synchronize()
                    self.began = time.perf_counter()
                if state.global_step == STEPS_BEFORE + STEPS:
                    synchronize()
                    self.ended = time.perf_counter()

        clock, toy = Clock(), self.record.toy
        arguments = TrainingArguments(
            output_dir="/tmp/trainer", max_steps=STEPS_BEFORE + STEPS, per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=ACCUMULATION, bf16=True, use_cpu=toy, optim="adamw_torch_fused",
            torch_compile=not toy, use_liger_kernel=liger, learning_rate=RATE, weight_decay=0.1, adam_beta2=0.95,
            logging_steps=1000, save_strategy="no", report_to=[], dataloader_num_workers=0 if toy else 4,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in self.ids] * (ACCUMULATION * (STEPS_BEFORE + STEPS + 1))
        Trainer(model=self.model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
        return 1e3 * (clock.ended - clock.began) / STEPS


def measure(record: Recorder, rung: str, trainer: bool = False, liger: bool = False, **options: Any) -> None:
    peer = Peer(record, **options)
    milliseconds = peer.trainer(liger) if trainer else peer.plain()
    flops = peer.section.flops_per_token(peer.length)
    model, _, contestant = rung.partition(", ")
    record.write(
        model,
        contestant=contestant,
        tokens=peer.tokens,
        **record.rates(milliseconds, peer.tokens, flops),
        **record.memory(),
    )


def main() -> None:
    rung = os.environ.get("RUNG")
    if rung:
        record = Recorder("peers")
        record.attempt(rung, lambda: measure(record, rung, **RUNGS[rung]))
        return
    for name in chosen(RUNGS):  # a process each: an engine and a compiler leave state that a second would meet
        subprocess.run([sys.executable, "-m", "benchmarks.gpu.peers", *sys.argv[1:]], env={**os.environ, "RUNG": name})


if __name__ == "__main__":
    main()
