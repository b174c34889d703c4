"""A folder with a tiny corpus, tokenizer, shards and run.yaml, and the real command to use on it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatrain.run.directory import RunDir

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = str(ROOT)
CONFIG = """
run: {name: job}
model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128}
tokenizer: {path: data/tokenizer}
data: {sequence_length: 128, train: [{path: data/train}]}
training: {steps: 12, global_batch_size: 8}
parallel: {compile: false}
checkpoint: {interval_steps: 4}
monitor: {log_interval_steps: 1, sinks: []}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
slurm: {time: "10"}
"""


def make_project(folder: Path) -> Path:
    lines = [f"{number} times {number} is {number * number}." for number in range(8000)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    megatrain(folder, "data", "tokenizer", "train", "text.txt", "--out", "data/tokenizer", "--vocab-size", "512")
    arguments = ["--out", "data/train", "--tokenizer", "data/tokenizer", "--block-tokens", "4096"]
    megatrain(folder, "data", "prepare", "text.txt", *arguments)
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`megatrain …` in a folder, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def megatrain(folder: Path, *arguments: str, exit_code: int = 0) -> str:
    """`megatrain …` to its end; its standard output, and with an expected failure its errors too."""
    process = start(folder, *arguments)
    said, complained = process.communicate(timeout=500)
    assert process.returncode == exit_code, f"exit code {process.returncode}\n{said}{complained}"
    return said if exit_code == 0 else said + complained


def metrics(run: RunDir) -> list[dict[str, Any]]:
    """What the run has logged so far; a line that is being written is dropped."""
    text = run.metrics.read_text(encoding="utf-8") if run.metrics.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
