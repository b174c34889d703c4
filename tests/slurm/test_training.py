"""`megatrain submit` on a real cluster: two nodes of two ranks train, stop, go on, and finish."""

import subprocess
from pathlib import Path

import pytest

from megatrain.run_dir import RunDir
from tests.project import make_project, megatrain, metrics
from tests.slurm.conftest import wait_until

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run asks for two nodes of two ranks."""
    folder = make_project(tmp_path_factory.mktemp("work"))
    config = (folder / "run.yaml").read_text(encoding="utf-8")
    (folder / "run.yaml").write_text(config.replace("nodes: 1", "nodes: 2"), encoding="utf-8")
    return folder


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
