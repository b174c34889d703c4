"""`megatrain submit` on a real cluster: two nodes of two ranks train, stop, go on, and finish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.run_dir import RunDir
from tests.slurm.conftest import wait_until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
CONFIG = f"""
run: {{name: job}}
model: {{num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128}}
data: {{sequence_length: 128, train: [{{path: data/train}}]}}
training: {{steps: {STEPS}, global_batch_size: 8}}
parallel: {{compile: false}}
checkpoint: {{every_steps: 4}}
monitor: {{log_every_steps: 1}}
cluster: {{hardware: cpu, nodes: 2, gpus_per_node: 2}}
slurm: {{time: "10"}}
"""


def megatrain(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with prepared data and run.yaml."""
    folder = tmp_path_factory.mktemp("work")
    lines = [f"{number} times {number} is {number * number}." for number in range(8000)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    megatrain(folder, "data", "tokenizer", "train", "text.txt", "--out", "data/tokenizer", "--vocab-size", "512")
    arguments = ["--out", "data/train", "--tokenizer", "data/tokenizer", "--block-tokens", "4096"]
    megatrain(folder, "data", "prepare", "text.txt", *arguments)
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


def metrics(run: RunDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()] if run.metrics.is_file() else []


def submitted(said: str) -> str:
    (line,) = (line for line in said.splitlines() if line.startswith("submitted job "))
    return line.split()[2]


def test_two_nodes_of_two_ranks_train(cluster, folder):
    said = megatrain(folder, "submit", "run.yaml")
    run = RunDir(folder / "runs/job")
    fields = cluster.wait_for(submitted(said), "COMPLETED", "FAILED", seconds=240)
    log = (run.logs / f"slurm-{submitted(said)}.log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert f"step {STEPS}/{STEPS}" in log
    assert [point["step"] for point in metrics(run)] == list(range(1, STEPS + 1))
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]
    assert run.steps()[-1] == STEPS
    environment = run.environment.read_text()
    assert all(name in environment for name in nodes()), "both nodes took part"


def test_a_stopped_job_goes_on_where_it_was(cluster, folder):
    said = megatrain(
        folder, "submit", "run.yaml", "run.name=stopped", "training.steps=400", "checkpoint.every_steps=400"
    )
    run, job = RunDir(folder / "runs/stopped"), submitted(said)
    wait_until(lambda: len(metrics(run)) > 3, seconds=120)
    subprocess.run(["scancel", "--signal=USR2", job], check=True, timeout=30)
    log = run.logs / f"slurm-{job}.log"
    wait_until(lambda: "queued again" in log.read_text(), seconds=60)
    (stopped_at,) = run.steps()
    fields = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=240)
    assert fields["JobState"] == "COMPLETED", log.read_text()
    assert fields["Restarts"] == "1"
    assert f"resume: step {stopped_at}" in log.read_text()
    assert [point["step"] for point in metrics(run)] == list(range(1, 401)), "no step was lost, and none was repeated"


def nodes() -> list[str]:
    shown = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N"], capture_output=True, text=True, check=True)
    return shown.stdout.split()
