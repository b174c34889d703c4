"""`megatrain submit` on a real cluster, with the real trainer: to the time limit, back into the queue, to the end."""

import subprocess
from pathlib import Path

import pytest

from megatrain.run_dir import RunDir
from tests.project import make_project, megatrain, metrics
from tests.slurm.conftest import wait_until

STEPS = 150
# Slows the first start down, so that its time limit finds it training; changes no number.
SLOW = """
import os, runpy, sys, time
from megatrain.train.signals import StopRequest
agreed = StopRequest.agreed
def slow(self, group):
    time.sleep(0.3 if os.environ["MEGATRAIN_ATTEMPT"] == "0" else 0)
    return agreed(self, group)
StopRequest.agreed = slow
sys.argv = sys.argv[3:]  # without this file, the ranks' Python and -m
runpy.run_module("megatrain.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run asks for two nodes of one rank."""
    folder = make_project(tmp_path_factory.mktemp("work"))
    config = (folder / "run.yaml").read_text(encoding="utf-8")
    for before, after in {
        "nodes: 1, gpus_per_node: 2": "nodes: 2, gpus_per_node: 1",
        "steps: 12": f"steps: {STEPS}",
        "every_steps: 4": "every_steps: 1000",
        'time: "10"': 'time: "5", signal_lead_seconds: 30, cpus_per_task: 1',
    }.items():
        assert before in config
        config = config.replace(before, after)
    (folder / "run.yaml").write_text(config, encoding="utf-8")
    return folder


def test_a_run_across_its_time_limit_has_the_losses_of_one_without(cluster, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the order of sums is part of the numbers
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    (folder / "site.sh").write_text(f"CONTAINER=($PYTHON {folder}/slow.py)\n", encoding="utf-8")
    said = megatrain(folder, "submit", "run.yaml", "--profile", "./site.sh")
    (job,) = (line.split()[2] for line in said.splitlines() if line.startswith("submitted job "))
    run = RunDir(folder / "runs/job")

    megatrain(folder, "train", "run.yaml", "run.name=whole", "--nproc", "2")

    wait_until(lambda: len(metrics(run)) > 3, seconds=120)
    limit(job, minutes=1)
    log = run.logs / f"slurm-{job}.log"
    wait_until(lambda: "queued again" in log.read_text(), seconds=100)
    (stopped_at,) = run.steps()
    assert stopped_at < STEPS
    limit(job, minutes=5)
    fields = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=240)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert f"resume: step {stopped_at}" in log.read_text()
    mine, whole = ([(row["step"], row["loss"]) for row in metrics(r)] for r in (run, RunDir(folder / "runs/whole")))
    assert mine == whole, "no step was lost, none was repeated, and every loss is the same"
    environment = run.environment.read_text()
    assert sum(name in environment for name in nodes()) == 2, "two nodes took part"
    shown = megatrain(folder, "status", "runs/job")
    assert "finished" in shown
    assert "2 (1 restarts)" in shown
    wait_until(lambda: not cluster.processes(), 30)


def limit(job: str, *, minutes: int) -> None:
    """What an operator can do: it is Slurm itself that then tells the job of the coming end."""
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True, timeout=30)


def nodes() -> list[str]:
    shown = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N"], capture_output=True, text=True, check=True)
    return shown.stdout.split()
