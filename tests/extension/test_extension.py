"""A family, an optimizer, a schedule, a task, metrics and a sink of which nothing in the package knows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatrain.run.directory import RunDir
from tests import project

HERE = Path(__file__).parent
RUN = """
extensions: [toy]
run: {name: job}
model: {family: toy, num_hidden_layers: 2, hidden_size: 32, heads: 4}
optimizer: {name: toy_lion, momentum: 0.8, weight_decay: 0.5}
schedule: {name: toy_sqrt, warmup_steps: 1}
task: {name: toy_masked_inputs, every: 3}
tokenizer: {path: data/tokenizer}
data: {sequence_length: 64, train: [{path: data/train}]}
training: {steps: 6, global_batch_size: 8, micro_batch_size: 2, precision: fp32}
parallel: {compile: false, activation_checkpointing: selective}
checkpoint: {interval_steps: 3}
evaluation: {interval_steps: 3}
monitor: {log_interval_steps: 1, sinks: [tensorboard, toy_csv], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
"""
LOGITS = """
import sys, torch, toy
from pathlib import Path
from transformers import AutoModelForCausalLM
from megatrain.checkpoint.read import read_model

ids = torch.arange(32).view(2, 16)
with torch.no_grad():
    theirs = AutoModelForCausalLM.from_pretrained("exported", dtype=torch.float32)(input_ids=ids).logits
    ours = read_model(Path(sys.argv[1]))(ids)[..., : theirs.shape[-1]]
assert ours.std() > 0.1
torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """Where a run of all of them was trained for 6 steps. `toy` is found as whoever keeps it beside their
    configuration has it found: by PYTHONPATH."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(project, "PYTHONPATH", os.pathsep.join((project.PYTHONPATH, str(HERE))))
        folder = project.make_project(tmp_path_factory.mktemp("toy"))
        (folder / "run.yaml").write_text(RUN, encoding="utf-8")
        project.megatrain(folder, "train", "run.yaml", *layout(zero=1))
        yield folder


def layout(*, zero: int, tensor: int = 1, context: int = 1) -> list[str]:
    return [
        f"parallel.{name}={value}"
        for name, value in {"zero_stage": zero, "tensor_parallel": tensor, "context_parallel": context}.items()
    ]


def numbers(run: RunDir) -> list[list[float]]:
    names = ("step", "loss", "grad_norm", "learning_rate", "toy_masked")
    return [[row[name] for name in names] for row in project.metrics(run) if "loss" in row]


def test_it_is_planned(folder: Path) -> None:
    chosen = json.loads(project.megatrain(folder, "plan", "run.yaml", *layout(zero=1), "--json"))["chosen"]
    memory = chosen["memory_bytes"]
    assert memory["optimizer"] == memory["parameters"], "a half of its fp32 copy, and of the one state that Lion keeps"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.evry=4", "task.evry: 4: unknown key. Did you mean every?"),
        ("optimizer.momentun=0.5", "optimizer.momentun: 0.5: unknown key. Did you mean momentum?"),
        ("model.head=4", "model.head: 4: unknown key. Did you mean heads?"),
        ("monitor.sinks=[toy_csw]", "sink 'toy_csw' is not known. Did you mean toy_csv?"),
        ("parallel.tensor_parallel=8", "attention heads"),
    ],
)
def test_a_mistake_in_a_section_of_its_own_is_named(folder: Path, override: str, said: str) -> None:
    assert said in project.megatrain(folder, "plan", "run.yaml", override, exit_code=2)


@pytest.mark.parametrize("other", [{"zero": 3, "tensor": 2}, {"zero": 2, "context": 2}], ids=str)
def test_a_resume_under_another_layout_goes_through_the_same_numbers(folder: Path, other: dict[str, int]) -> None:
    whole, name = RunDir(folder / "runs" / "job"), "-".join(map(str, other.values()))
    shutil.copytree(whole.path, folder / "runs" / name)
    project.megatrain(folder, "train", "run.yaml", f"run.name={name}", *layout(**other), "--resume", "3")
    resumed, expected = numbers(RunDir(folder / "runs" / name)), numbers(whole)
    assert [row[0] for row in resumed] == [1, 2, 3, 4, 5, 6]
    assert resumed[:3] == expected[:3] != resumed[3:]
    torch.testing.assert_close(torch.tensor(resumed), torch.tensor(expected), rtol=1e-3, atol=1e-6)


def test_what_is_reported_reaches_every_sink(folder: Path) -> None:
    run = RunDir(folder / "runs" / "job")
    lines = (run.path / "toy.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# job from 0"
    (first, *_), (bits, *_) = (
        [row for row in project.metrics(run) if name in row] for name in ("toy_masked", "toy_bits")
    )
    assert 0.2 < first["toy_masked"] < 0.6
    assert f"1,toy_masked,{first['toy_masked']}" in lines
    assert f"3,toy_bits,{bits['toy_bits']}" in lines
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert {"toy/masked", "toy/bits", "train/loss"} <= set(events.Tags()["scalars"])


def test_what_was_trained_is_exported(folder: Path) -> None:
    run = RunDir(folder / "runs" / "job")
    project.megatrain(folder, "export", "runs/job", "exported", "--dtype", "float32")
    environment = {**os.environ, "PYTHONPATH": project.PYTHONPATH, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", LOGITS, str(run.step(6))], cwd=folder, env=environment, check=True)
    project.megatrain(folder, "generate", "runs/job", "1 times", "--max-new-tokens", "3")
