"""What every contestant trains on: real dialogues, a small Llama with random weights, and the optimizer."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from megatrain.config.resolved import ResolvedFinetune
from quickstart.bbc import package_folder
from quickstart.dialogues import dialogues, write

WORK = Path("data/benchmark-finetune")
RATE, BETAS, EPS, DECAY, CLIPPING = 1e-4, (0.9, 0.95), 1e-8, 0.0, 1.0
RANK, ALPHA = 16, 32.0
VOCABULARY = 4096
SPECIAL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        together: dialogues of a step where each has a row of its own.
        packed_rows: of a step where they share rows of `length` tokens.
    """

    layers: int = 6
    width: int = 384
    heads: int = 6
    mlp: int = 1024
    length: int = 512
    rows: int = 8  # of packed dialogues, in a pass
    packed_rows: int = 2
    together: int = 32

    @property
    def model(self) -> dict[str, Any]:
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "intermediate_size": self.mlp,
            "max_position_embeddings": 2 * self.length,
            "tie_word_embeddings": True,
        }


def prepare(setting: Setting) -> None:
    """Dialogues, tokenizer and model in WORK."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatrain.data.text.tokenizer import Tokenizer, train_tokenizer, write_tokenizer

    shutil.rmtree(WORK, ignore_errors=True)
    found = dialogues(package_folder("chatterbot_corpus") / "data" / "english")
    write(found, WORK / "chat.jsonl")
    texts = "\n".join(message["content"] for dialogue in found for message in dialogue)
    (WORK / "chat.txt").write_text(texts, encoding="utf-8")
    train_tokenizer([str(WORK / "chat.txt")], WORK / "tokenizer", VOCABULARY, special_tokens=SPECIAL)
    tokenizer = Tokenizer.load(WORK / "tokenizer")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**setting.model, vocab_size=VOCABULARY)).save_pretrained(WORK / "base")
    write_tokenizer(tokenizer, WORK / "base")
    (WORK / "base" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def run_of(name: str, setting: Setting, *, lora: bool, compiled: bool) -> Path:
    """A run's folder, prepared as `megatrain finetune` does for one rank."""
    from launcher.preflight import checks
    from launcher.runs.prepare import prepare_run
    from megatrain.config.file import parse_config

    finetune: dict[str, Any] = {"base": str(WORK / "base"), "train": [str(WORK / "chat.jsonl")]}
    if lora:
        finetune["adapter"] = {"name": "lora", "rank": RANK, "alpha": ALPHA}
    fields = {
        "run": {"name": name, "directory": str(WORK / "runs")},
        "finetune": finetune | {"sequence_length": setting.length},
        "task": {"name": "sft"},
        "optimizer": {"learning_rate": RATE, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "training": {
            "steps": 10, "global_batch_size": setting.packed_rows, "micro_batch_size": setting.packed_rows,
            "precision": "fp32",
        },
        "parallel": {"zero_stage": 1, "activation_checkpointing": "none", "compile": compiled},
        "monitor": {"sinks": [], "health_check": False},
        "cluster": {"hardware": "cpu", "nodes": 1, "gpus_per_node": 1},
    }  # fmt: skip
    found = checks.examine(parse_config(yaml.safe_dump(fields)))
    return prepare_run(found.config, found.demand().chosen).path


def packed_rows(config: ResolvedFinetune, setting: Setting) -> list[Any]:
    """The rows of a pass."""
    from megatrain.tasks.sft.task import SFT

    return SFT(config)._training.rows[: setting.rows]


def examples_of(rows: list[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and what is learnt of each dialogue: int64 and bool, [n]."""
    for row in rows:
        for begin, end in itertools.pairwise([0, *row.ends.tolist()]):
            yield torch.from_numpy(row.tokens[begin:end].copy()), torch.from_numpy(row.is_target[begin:end].copy())
