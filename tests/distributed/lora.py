"""Runs that train a part of a tiny Llama of transformers."""

from pathlib import Path

from tests.distributed.classifiers import make_base

CONFIG = """
run: {name: NAME, seed: 3}
finetune: {base: BASE, train: [pairs.jsonl], validation: [pairs.jsonl], sequence_length: 32}
training: {steps: 6, global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 1.0e-2}
schedule: {name: constant, warmup_steps: 0}
evaluation: {interval_steps: 3}
parallel: {compile: false}
checkpoint: {interval_steps: 3}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""
LORA = "finetune.adapter={name: lora, rank: 4, alpha: 12}"
DORA = "finetune.adapter={name: dora, rank: 4, alpha: 12}"
HOULSBY = "finetune.adapter={name: houlsby, bottleneck: 8}"
TOP = "finetune.train_layers=1"
HEAD = "finetune.train_layers=0"


def base_of(here: Path, family: str = "llama") -> str:
    folder = here / f"base-{family}"
    return str(folder if folder.exists() else make_base(folder, family, here / "tokenizer"))


def config_of(name: str, base: str) -> str:
    return CONFIG.replace("NAME", name).replace("BASE", base)
