"""Does a model learn as well here as by Hugging Face's Trainer? `python -m benchmarks.learning`

    python -m benchmarks.learning [--seeds 1 2 3] [--steps 300] [--contestants NAME …] [--toy]

The manual of Python 3.11 (Debian's `python3.11-doc`), a Llama of one size, the same rows, tokens, schedule, precision
and AdamW; the weights begin from a seed, as each of them begins them, and the rows come in its own order. Beside it:
Trainer from the weights that megatrain begins with, and Muon, the same run with another optimizer. What counts is bits
per byte of held-out pages, computed for all by transformers, of what megatrain exports and Trainer has. Writes
benchmarks/results/learning.json, then learning.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from math import log
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from megatrain.api import open_data, open_run
from megatrain.data.text.tokenizer import Tokenizer
from quickstart.realdata import fetch, manual
from quickstart.shell import megatrain

RESULTS = Path(__file__).parent / "results"
WORK = Path("data/learning")
LENGTH, ROWS = 256, 16  # tokens per row, rows per step
VOCABULARY, RATE, WARMUP, DECAY, BETAS, EPS = 4096, 3e-3, 0.05, 0.1, (0.9, 0.95), 1e-8
MODEL = {
    "num_hidden_layers": 4,
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 512,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
HANDED = "Trainer, from megatrain's weights"
CONTESTANTS = ("megatrain", "Trainer", HANDED, "megatrain, Muon")


def prepare() -> None:
    """Tokenizer and token shards of the manual, one page in a hundred held out; made once."""
    if (WORK / "held").is_dir():
        return
    shutil.rmtree(WORK, ignore_errors=True)
    source = manual(fetch(Path("data/realdata/packages")))
    tokenizer = str(WORK / "tokenizer")
    megatrain("data", "tokenizer", "train", source, "--out", tokenizer, "--vocab-size", str(VOCABULARY))
    megatrain(
        *("data", "prepare", source, "--out", str(WORK / "train"), "--tokenizer", tokenizer, "--dedup", "exact"),
        *("--holdout", "0.03", "--holdout-out", str(WORK / "held")),
    )


def by_megatrain(seed: int, steps: int, muon: bool, rate: float = RATE) -> Any:
    """The trained model, as transformers'."""
    optimizer: dict[str, Any] = {"learning_rate": rate, "betas": list(BETAS), "eps": EPS, "weight_decay": DECAY}
    if muon:
        optimizer["name"] = "muon"  # its updates have the size of AdamW's: one learning rate serves both
    name = f"{'muon' if muon else 'adamw'}-{seed}-{steps}-{rate}"
    shutil.rmtree(WORK / name, ignore_errors=True)
    file = WORK / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "run": {"name": name, "directory": str(WORK), "seed": seed},
                "model": MODEL,
                "tokenizer": {"path": str(WORK / "tokenizer")},
                "data": {
                    "sequence_length": LENGTH,
                    "attend_across_documents": True,
                    "train": [{"path": str(WORK / "train")}],
                },
                "optimizer": optimizer,
                "schedule": {"name": "cosine", "warmup_steps": int(WARMUP * steps), "min_lr_ratio": 0.0},
                "training": {
                    "steps": steps, "global_batch_size": ROWS, "micro_batch_size": ROWS, "precision": "fp32",
                },
                "parallel": {"activation_checkpointing": "none", "compile": False},
                "cluster": {"hardware": "cpu", "nodes": 1, "gpus_per_node": 1},
            }
        )
    )  # fmt: skip
    megatrain("train", str(file), "--nproc", "1")
    return open_run(WORK / name).latest().to_transformers()


def by_trainer(seed: int, steps: int, handed: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(WORK / "trainer"), max_steps=steps, per_device_train_batch_size=ROWS, use_cpu=True, seed=seed,
        data_seed=seed, optim="adamw_torch_fused", learning_rate=RATE, weight_decay=DECAY, adam_beta1=BETAS[0],
        adam_beta2=BETAS[1], adam_epsilon=EPS, max_grad_norm=1.0, lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * steps), save_strategy="no", report_to=[], logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    data = open_data(WORK / "train", sequence_length=LENGTH, attend_across_documents=True)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**MODEL, max_position_embeddings=LENGTH, use_cache=False))
    if handed:
        first = by_megatrain(seed, 1, muon=False, rate=1e-30)  # its only step moves no weight
        model.load_state_dict(first.state_dict())
    # transformers shifts labels itself: to its own, of the ids alone
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in data]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return model


@torch.no_grad()
def bits_per_byte(model: Any) -> float:
    """Of the held-out pages: bits of all targets, over the bytes of their text."""
    tokenizer = Tokenizer.load(WORK / "tokenizer")
    held = open_data(WORK / "held", sequence_length=LENGTH, attend_across_documents=True)
    nats, size = 0.0, 0
    for row in held:
        logits: Tensor = model(row["input_ids"][None]).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits, row["labels"], ignore_index=-100, reduction="sum"))
        text = tokenizer.decode([label for label in row["labels"].tolist() if label not in (-100, tokenizer.eos_id)])
        size += len(text.encode())
    held.close()
    return nats / log(2) / size


def alone(name: str, seed: int, steps: int) -> float:
    """Bits per byte, of a contestant in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.learning", "--one", name, "--seeds", str(seed), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| | bits per byte, by seed | mean | seconds, median |", "|---|---|--:|--:|"]
    for name in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == name]
        bits = [row["bits_per_byte"] for row in mine]
        seconds = statistics.median(row["seconds"] for row in mine)
        shown = ", ".join(f"{value:.4f}" for value in bits)
        lines.append(f"| {name} | {shown} | {statistics.mean(bits):.4f} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--toy", action="store_true", help="a few steps of one seed; nothing is written")
    arguments = parser.parse_args()
    steps, seeds = (4, [1]) if arguments.toy else (arguments.steps, arguments.seeds)
    if arguments.one:
        (seed,) = seeds
        if arguments.one in ("Trainer", HANDED):
            model = by_trainer(seed, steps, handed=arguments.one == HANDED)
        else:
            model = by_megatrain(seed, steps, muon="Muon" in arguments.one)
        print(bits_per_byte(model.eval()))
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    prepare()
    rows = []
    for seed in seeds:
        for name in arguments.contestants:
            began = time.perf_counter()
            rows.append({"contestant": name, "seed": seed, "bits_per_byte": alone(name, seed, steps)})
            rows[-1]["seconds"] = time.perf_counter() - began
            print(rows[-1], flush=True)
    page = [
        "# Learning, against Hugging Face's Trainer",
        f"{date.today()}, {os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}. Written by "
        f"`{' '.join(['python -m benchmarks.learning', *sys.argv[1:]])}`.",
        "",
        f"{MODEL}, fp32, {steps} steps of {ROWS} × {LENGTH} tokens of the manual of Python 3.11, AdamW or Muon, "
        f"learning rate {RATE}, cosine. Bits per byte of held-out pages.",
        "",
        *table(rows),
        "",
    ]
    if not arguments.toy:
        (RESULTS / "learning.json").write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "learning.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
