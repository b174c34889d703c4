"""SIGKILL at any moment, and the run goes on as if nothing had been: the same losses, bit for bit."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.state import read_state
from megatrain.run.directory import RunDir
from tests.project import make_project, megatrain, metrics, start

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

STEPS = 40
KILLS = 2
LAYOUTS = {
    "zero1": ["parallel.zero_stage=1", "training.micro_batch_size=2"],
    "zero3-checkpointing": ["parallel.zero_stage=3", "parallel.activation_checkpointing=full"],
    "zero2-tp2": ["parallel.zero_stage=2", "parallel.tensor_parallel=2"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


def arguments(name: str, layout: str) -> list[str]:
    return [
        *("train", "run.yaml", f"run.name={name}", f"training.steps={STEPS}", "checkpoint.interval_steps=7"),
        *LAYOUTS[layout],
        *("--nproc", "2"),
    ]


def ranks_of(run: RunDir) -> list[int]:
    """Process ids of the ranks of a run: whose command line names its folder."""
    listed = subprocess.run(["pgrep", "-f", f"megatrain.train {run}"], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def wait_for_step(process: subprocess.Popen[str], run: RunDir, step: int) -> None:
    deadline = time.monotonic() + 400  # beside tests that take every core
    while not any(row["step"] >= step for row in metrics(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "layout", ["zero3-checkpointing", *(pytest.param(one, marks=pytest.mark.full) for one in ("zero1", "zero2-tp2"))]
)
def test_a_killed_run_repeats_the_losses_of_one_that_was_not(folder: Path, layout: str) -> None:
    megatrain(folder, *arguments(f"whole-{layout}", layout))
    whole, killed = RunDir(folder / f"runs/whole-{layout}"), RunDir(folder / f"runs/killed-{layout}")
    chance = random.Random(layout)
    for attempt in range(KILLS):
        process = start(folder, *arguments(killed.path.name, layout))
        wait_for_step(process, killed, chance.randrange(3 + attempt * STEPS // 2, (attempt + 1) * STEPS // 2))
        if attempt % 2:
            process.kill()  # the launcher: its ranks go with it
        else:
            os.kill(ranks_of(killed)[-1], signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert "resume: step" in megatrain(folder, *arguments(killed.path.name, layout))

    got, want = (
        [(row["step"], row["loss"], row["grad_norm"], row["tokens"]) for row in metrics(run)] for run in (killed, whole)
    )
    assert [row[0] for row in got] == list(range(1, STEPS + 1))
    assert got == want
    last = (run.step(STEPS) for run in (killed, whole))
    (state, tensors), (want_state, want_tensors) = ((read_state(at), read_tensors(at)) for at in last)
    assert state == want_state, "the position in the data too"
    assert all(torch.equal(tensor, want_tensors[name]) for name, tensor in tensors.items())
    assert ranks_of(killed) == []
