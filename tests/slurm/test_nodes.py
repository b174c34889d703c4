"""What happens to nodes and to the controller under a job, and what becomes of the job."""

import os
import subprocess
import time
from contextlib import suppress

import pytest

from launcher.preflight.job import check_job
from launcher.runs.stop import stop_run
from launcher.slurm import commands
from megatrain.base.errors import PreflightError
from megatrain.run.attempts import Attempt, read_attempts, write_attempts
from tests.slurm.conftest import wait_until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="nodes can be told apart only as root")
ENDED = ("COMPLETED", "FAILED", "CANCELLED")


def nodes_of(cluster, job) -> list[str]:
    return commands.hostnames(cluster.job(job.id)["NodeList"])


def could_start(job) -> bool:
    with suppress(PreflightError):  # nodes report to a new controller one by one
        return bool(commands.test_only(job.script))
    return False


def test_node_crash_requeues_on_other_nodes(cluster, submit):
    job = submit("if start < 1: wait_in_a_collective()\nsave(1)")
    job.started()
    first, second = nodes_of(cluster, job)
    cluster.operate("crash", second)
    try:
        fields = cluster.wait_for(job.id, "COMPLETED", "FAILED", seconds=90)
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.log
        assert second not in nodes_of(cluster, job)
        lost, _ = read_attempts(job.run)
        assert second in lost.failed_nodes or lost.failed_nodes == [], "blamed, where Slurm had noticed"
        assert first not in lost.failed_nodes
    finally:
        cluster.operate("boot", second)
        wait_until(lambda: not commands.nodes_down([second]), 60)


def test_frozen_node_is_ended_by_the_watchdog(cluster, submit):
    job = submit(
        "watchdog = Watchdog(run, rank=rank, hang_timeout_seconds=3)\nif start < 1: wait_in_a_collective()\nsave(1)"
    )
    job.started()
    frozen = nodes_of(cluster, job)[1]
    cluster.operate("freeze", frozen)
    try:
        fields = cluster.wait_for(job.id, "COMPLETED", "FAILED", seconds=90)
        assert fields["JobState"] == "COMPLETED", job.log
        assert frozen not in nodes_of(cluster, job)
    finally:
        cluster.operate("thaw", frozen)
        wait_until(lambda: not commands.nodes_down([frozen]), 60)


def test_node_that_failed_twice_is_excluded_on_requeue(cluster, submit):
    job = submit("if start < 3: hang()\nsave(2)", "training.steps=2")
    job.started()
    bad = nodes_of(cluster, job)[0]
    (now,) = read_attempts(job.run)
    past = Attempt(
        job="1",
        host="x",
        pid=1,
        ranks=4,
        started=now.started,
        start_step=0,
        ended=now.started,
        end_step=1,
        failed_nodes=[bad],
    )
    write_attempts(job.run, [now.model_copy(update={"ended": time.time(), "failed_nodes": []}), past, past])
    subprocess.run(["scontrol", "requeue", job.id], check=True, timeout=30)  # as after a node failure
    fields = cluster.wait_for(job.id, "COMPLETED", "FAILED", seconds=90)
    assert fields["JobState"] == "COMPLETED", job.log
    assert bad not in nodes_of(cluster, job)
    assert f"{bad} failed twice; requeued without" in job.log


def test_controller_outage_delays_the_requeue(cluster, submit):
    wait = "while not (run.path / 'go').exists(): time.sleep(0.1)\n"
    job = submit(f"if start < 1:\n    {wait}    save(1)\n    leave(75, 'SIGUSR2')\nsave(2)", "training.steps=2")
    job.started()
    cluster.operate("down")
    try:
        (job.run.path / "go").touch()
        wait_until(lambda: "asking again" in job.log, 150)
    finally:
        cluster.operate("up")
    fields = cluster.wait_for(job.id, "COMPLETED", "FAILED", seconds=90)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.log
    assert job.run.steps() == [1, 2]


def test_controller_restart_loses_no_job_and_a_full_queue_is_refused(cluster, submit):
    job = submit("hang()", "training.steps=2")
    job.started()
    known = len(commands.run_slurm("squeue", "-h", "--states=all").splitlines())
    cluster.operate("down")
    cluster.operate("up", f"MaxJobCount={known}")
    try:
        assert cluster.job(job.id)["JobState"] == "RUNNING"
        found = [finding.text for finding in check_job(job.script, job.run)]
        assert "sbatch: allocation failure: Resource temporarily unavailable" in found
    finally:
        cluster.operate("down")
        cluster.operate("up")
    wait_until(lambda: could_start(job), 30)
    stop_run(job.run, now=False)
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["ExitCode"], fields["Restarts"]) == ("75:0", "0"), job.log
    assert job.run.steps() == [1]
