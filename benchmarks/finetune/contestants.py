"""A contestant is built, and then passes over the same dialogues whenever it is told to."""

import os
import random
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune.setting import (
    ALPHA,
    BETAS,
    CLIPPING,
    DECAY,
    EPS,
    RANK,
    RATE,
    WORK,
    Setting,
    examples_of,
    packed_rows,
    run_of,
)

Pass = Callable[[], None]
IGNORED = -100
MULTIPLE = 32  # a compiled Trainer pads to: few shapes to compile for


def megatrain(setting: Setting, *, lora: bool, packed: bool, compiled: bool) -> Pass:
    """One rank of ZeRO-1: packed rows as `megatrain finetune` makes them, or a dialogue a row, padded to the longest of
    its step."""
    from megatrain.data.examples.loader import batch_of
    from megatrain.data.examples.packing import Example, pack
    from megatrain.run.directory import RunDir
    from megatrain.run.inputs import load_run
    from megatrain.tasks.sft.task import SFT
    from megatrain.train.build import build

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    name = f"{'lora' if lora else 'full'}-{'packed' if packed else 'apart'}-{'compiled' if compiled else 'eager'}"
    run = RunDir(run_of(name, setting, lora=lora, compiled=compiled))
    config: Any = load_run(run)
    parts, _ = build(config, run, SFT(config), resume="never")
    rows = packed_rows(config, setting)
    if packed:
        groups = [rows[at : at + setting.packed_rows] for at in range(0, len(rows), setting.packed_rows)]
    else:
        groups = []
        for some in _shuffled(list(examples_of(rows)), setting.together):
            made = [Example(ids.numpy(), 0, learnt=learnt.numpy()) for ids, learnt in some]
            longest = max(len(ids) for ids, _ in some)
            groups.append([pack([example], longest, 0)[0] for example in made])

    def once() -> None:
        for group in groups:
            parts.engine.forward_backward(batch_of(group), sum(row.targets for row in group))
            parts.engine.step(RATE)

    return once


def _shuffled(examples: list[Any], size: int) -> list[list[Any]]:
    random.Random(0).shuffle(examples)
    return [examples[at : at + size] for at in range(0, len(examples), size)]


def trainer(
    setting: Setting, told: Connection, tell: Callable[[], None], *, lora: bool, grouping: str, compiled: bool
) -> None:
    """Hugging Face's Trainer, an epoch a message.

    Args:
        grouping: "random"; "group_by_length", dialogues of similar length in a batch; or "flattened": dialogues behind
            each other in one row, which transformers keeps apart by their positions.
    """
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if told.recv() is None:
                raise KeyboardInterrupt

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell()

    model: Any = AutoModelForCausalLM.from_pretrained(WORK / "base", dtype=torch.float32)
    model.config.use_cache = False
    if lora:
        import peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    flattened = grouping == "flattened"
    arguments = TrainingArguments(
        output_dir=str(WORK / "trainer"), num_train_epochs=10**4, per_device_train_batch_size=setting.together,
        use_cpu=True, optim="adamw_torch_fused", torch_compile=compiled, learning_rate=RATE, weight_decay=DECAY,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPS, max_grad_norm=CLIPPING, logging_steps=10**6,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        train_sampling_strategy="random" if flattened else grouping,
    )  # fmt: skip
    from megatrain.run.directory import RunDir
    from megatrain.run.inputs import load_run

    config: Any = load_run(RunDir(Path(run_of("rows", setting, lora=False, compiled=False))))
    data = [
        {"input_ids": ids, "labels": torch.where(learnt, ids, IGNORED)}
        for ids, learnt in examples_of(packed_rows(config, setting))
    ]
    collate = _flat if flattened else _padded(MULTIPLE if compiled else 1)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Turns()]).train()


def _padded(multiple: int) -> Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        longest = -(-max(len(item["input_ids"]) for item in items) // multiple) * multiple
        ids, labels, mask = (torch.full((len(items), longest), fill) for fill in (0, IGNORED, 0))
        for number, item in enumerate(items):
            size = len(item["input_ids"])
            ids[number, :size], labels[number, :size], mask[number, :size] = item["input_ids"], item["labels"], 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    return collate


def _flat(items: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    from transformers import DataCollatorWithFlattening

    made: dict[str, Any] = DataCollatorWithFlattening(return_tensors="pt")(
        [{name: values.tolist() for name, values in item.items()} for item in items]
    )
    return made


MEGATRAIN: dict[str, dict[str, bool]] = {
    "megatrain": {"packed": True, "compiled": True},
    "megatrain, eager": {"packed": True, "compiled": False},
    "megatrain, a dialogue a row": {"packed": False, "compiled": False},
}
TRAINER: dict[str, dict[str, Any]] = {
    "Trainer": {"grouping": "random", "compiled": False},
    "Trainer, by length": {"grouping": "group_by_length", "compiled": False},
    "Trainer, by length, compiled": {"grouping": "group_by_length", "compiled": True},
    "Trainer, flattened": {"grouping": "flattened", "compiled": False},
}
