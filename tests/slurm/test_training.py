"""`megatrain submit` on a real cluster, with the real trainer: back into the queue whatever befalls it, to the end."""

import subprocess
from pathlib import Path

import pytest

from megatrain.run.attempts import read_attempts
from megatrain.run.directory import RunDir
from tests.project import make_project, megatrain, metrics
from tests.slurm.conftest import wait_until

LEAD = 30  # seconds before a time limit in which a run saves
STEPS = 100  # the faults below are at some of them
# Slows the first start down, so that its time limit finds it training; changes no number.
SLOW = """
import os, runpy, sys, time
from megatrain.train.signals import StopRequest
agreed = StopRequest.agreed
def slow(self, step):
    time.sleep(1.0 if os.environ["MEGATRAIN_ATTEMPT"].split(":")[0] == "0" else 0)
    return agreed(self, step)
StopRequest.agreed = slow
sys.argv = sys.argv[sys.argv.index("-m") + 1 :]  # without this file, the ranks' Python and its options
runpy.run_module("megatrain.train", run_name="__main__", alter_sys=True)
"""


# Each of these befalls the run once, at its step, in the midst of training.
FAULTS = """
import os, pathlib, runpy, signal, sys, time
from megatrain.monitor.watchdog import Watchdog
rank = os.environ["SLURM_PROCID"]
faults = {
    ("1", 25): lambda: 1 / 0,
    ("0", 45): lambda: signal.raise_signal(signal.SIGKILL),
    ("1", 65): lambda: time.sleep(600),
    ("0", 85): lambda: os.system(f"scancel --signal=USR2 {os.environ['SLURM_JOB_ID']}"),
}
beat = Watchdog.beat
def odd(self, activity, step=None):
    beat(self, activity, step)
    befallen = pathlib.Path(f"fault-{rank}-{step}")
    if (rank, step) in faults and not befallen.exists():
        befallen.touch()
        faults[rank, step]()
Watchdog.beat = odd
sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
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
        "interval_steps: 4": "interval_steps: 1000",
        'time: "10"': f'time: "30", signal_before_limit_seconds: {LEAD}, cpus_per_task: 1',
    }.items():
        assert before in config
        config = config.replace(before, after)
    (folder / "run.yaml").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of the same run without an interruption, on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the order of sums is part of the numbers
        megatrain(folder, "train", "run.yaml", "run.name=whole", "--nproc", "2")
    return losses(RunDir(folder / "runs/whole"))


def losses(run: RunDir) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metrics(run)]


def submit(folder: Path, name: str, wrapper: str, *overrides: str) -> tuple[str, RunDir]:
    """Submit the run with ranks that start through `wrapper`; the job and its run."""
    (folder / f"{name}.py").write_text(wrapper, encoding="utf-8")
    (folder / f"{name}.sh").write_text(f"CONTAINER=($PYTHON {folder}/{name}.py)\n", encoding="utf-8")
    said = megatrain(folder, "submit", "run.yaml", f"run.name={name}", *overrides, "--profile", f"./{name}.sh")
    (job,) = (line.split()[2] for line in said.splitlines() if line.startswith("submitted job "))
    return job, RunDir(folder / "runs" / name)


@pytest.mark.full  # requeues at the limit, with ranks that train nothing, are in test_job_script.py
def test_requeue_at_the_time_limit_has_the_same_losses(cluster, folder, whole, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job, run = submit(folder, "limited", SLOW)
    wait_until(lambda: len(metrics(run)) > 3, seconds=120)
    limit(job, minutes=-(-(cluster.run_seconds(job) + LEAD + 10) // 60))
    log = run.logs / f"slurm-{job}.log"
    wait_until(lambda: "requeued" in log.read_text(), seconds=100)
    (stopped_at,) = run.steps()
    assert stopped_at < STEPS
    limit(job, minutes=30)
    fields = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=240)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert f"resume: step {stopped_at}" in log.read_text()
    assert losses(run) == whole, "no step was lost, none was repeated, and every loss is the same"
    environment = run.environment.read_text()
    assert sum(name in environment for name in nodes()) == 2, "two nodes took part"
    shown = megatrain(folder, "status", str(run))
    assert "finished" in shown
    assert "2 (1 restarts)" in shown
    wait_until(lambda: not cluster.processes(), 30)


def test_preemption_crash_hang_and_requeue_keep_the_same_losses(cluster, folder, whole, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job, run = submit(folder, "unlucky", FAULTS, "checkpoint.interval_steps=10", "monitor.hang_timeout_seconds=120")
    fields = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=280)
    log = (run.logs / f"slurm-{job}.log").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "4"), log
    assert losses(run) == whole, log
    raised, killed, hung, stopped, finished = read_attempts(run)
    assert (raised.end_step, raised.error) == (20, "ZeroDivisionError: division by zero")
    assert (killed.end_step, killed.exit_code) == (40, 1)
    assert (hung.end_step, hung.exit_code) == (60, 1)
    assert hung.error is not None
    assert hung.error.startswith("hung: no progress")
    assert "in odd" in (run.logs / "stacks-rank-1.txt").read_text()
    assert stopped.end_step is not None
    assert stopped.end_step >= 85, "as soon as the signal is there"
    assert stopped.exit_code == 75
    assert (finished.start_step, finished.end_step, finished.exit_code) == (stopped.end_step, STEPS, 0)
    assert not [node for attempt in read_attempts(run) for node in attempt.failed_nodes]
    wait_until(lambda: not cluster.processes(), 30)


def limit(job: str, *, minutes: int) -> None:
    """What an operator can do: it is Slurm itself that then tells the job of the coming end."""
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True, timeout=30)


def nodes() -> list[str]:
    shown = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N"], capture_output=True, text=True, check=True)
    return shown.stdout.split()
