"""The job's life, on a real cluster, with a stand-in for the trainer: what is made of each way to end."""

import subprocess

import pytest

from launcher.preflight.job import check_job
from launcher.runs.owner import busy_with
from launcher.runs.status import run_status
from launcher.runs.stop import stop_run
from launcher.slurm import commands
from launcher.slurm import job as slurm_job
from launcher.slurm.job_record import read_job
from megatrain.base.errors import PreflightError
from megatrain.run.attempts import read_attempts
from tests.project import ROOT
from tests.slurm.conftest import wait_until

ENDED = ("COMPLETED", "FAILED", "CANCELLED")


def test_every_rank_knows_who_it_is(cluster, submit, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = submit("save(1)")
    assert cluster.wait_for(job.id, *ENDED)["JobState"] == "COMPLETED", job.log
    said = [(job.run.path / f"rank-{rank}.0").read_text().split() for rank in range(4)]
    assert {tuple(words[:3]) for words in said} == {("--resume", "auto", "4")}
    assert [words[3] for words in said] == ["0", "1", "0", "1"]
    first_node = said[0][7]
    assert {(words[4], words[5]) for words in said} == {(first_node, str(20_000 + int(job.id) % 10_000))}
    assert {words[6] for words in said} == {"cpu"}
    assert len({words[7] for words in said}) == 2
    assert {tuple(words[8:]) for words in said} == {("2", "2")}
    (attempt,) = read_attempts(job.run)
    assert (attempt.job, attempt.ranks, attempt.exit_code, attempt.end_step) == (job.id, 4, 0, 1)
    assert run_status(job.run).state == "finished"


def test_time_limit_signal_saves_and_requeues_until_done_in_one_log(cluster, submit):
    job = submit("if start < 2: hang()\nsave(3)\nprint('the end', flush=True)", "training.steps=3")
    for attempt in range(2):
        job.started(attempt)
        subprocess.run(["scancel", "--signal=USR2" if attempt else "--signal=TERM", job.id], check=True, timeout=30)
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "2"), job.log
    assert "saved step 1; requeued" in job.log
    assert job.log.count("the end") == 4
    assert job.log.rstrip().endswith("megatrain: finished: step 3, after 2 restarts")


def test_preempted_job_saves_and_resumes(cluster, submit):
    job = submit("if start < 1: hang()\nsave(2)", "training.steps=2")
    job.started()
    options = ["--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    higher = commands.run_slurm("sbatch", "--parsable", *options).strip()
    cluster.wait_for(higher, "RUNNING", "COMPLETED", seconds=60)
    assert cluster.wait_for(job.id, *ENDED)["JobState"] == "COMPLETED", job.log
    assert [attempt.exit_code for attempt in read_attempts(job.run)] == [75, 0]
    assert job.run.steps() == [1, 2]


def test_crashed_rank_ends_the_attempt_and_requeues(cluster, submit):
    job = submit("if start == 0:\n    if rank == 3: leave(1, 'ValueError: odd')\n    wait_in_a_collective()\nsave(1)")
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.log
    assert "no new checkpoint (attempt 1 of 2); requeued after: ValueError: odd" in job.log
    failed, _ = read_attempts(job.run)
    assert (failed.exit_code, failed.error, failed.failed_nodes) == (1, "ValueError: odd", [])


def test_crash_loop_is_aborted_with_a_final_message(cluster, submit):
    job = submit("if rank == 1: leave(1, 'CUDA error: an illegal memory access')\nwait_in_a_collective()")
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "1:0", "1"), job.log
    last = job.log.rstrip().splitlines()[-1]
    assert last.startswith("megatrain: aborted after 1 restart without a new checkpoint. The last error: CUDA error")
    assert last.endswith(f"megatrain resubmit {job.run.path.absolute()}")
    assert "illegal memory access" in (run_status(job.run).last_error or "")


def test_non_retryable_error_is_not_requeued(cluster, submit):
    job = submit("leave(4, 'data/train: there is no such folder')")
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "4:0", "0"), job.log
    assert "not requeued: non-retryable error: data/train: there is no such folder" in job.log


def test_hang_is_ended_by_the_watchdog_with_stacks_and_requeued(cluster, submit):
    code = (
        "watchdog = Watchdog(run, rank=rank, hang_timeout_seconds=2)\n"
        "def the_place_where_it_hangs(): hang_deaf()\n"
        "if start == 0: the_place_where_it_hangs()\nsave(1)"
    )
    job = submit(code)
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.log
    stacks = [(job.run.logs / f"stacks-rank-{rank}.txt").read_text() for rank in range(4)]
    assert all("the_place_where_it_hangs" in text for text in stacks)
    hung, _ = read_attempts(job.run)
    assert hung.error is not None
    assert hung.error.startswith("hung: no progress for")
    assert hung.failed_nodes == []


def test_stop_saves_and_is_not_requeued_until_resubmit(cluster, submit):
    job = submit("if start < 1: hang()\nsave(2)", "training.steps=2")
    job.started()
    assert run_status(job.run).state == "running"
    assert "it saves and stops" in stop_run(job.run, now=False)
    fields = cluster.wait_for(job.id, *ENDED)
    assert (fields["ExitCode"], fields["Restarts"]) == ("75:0", "0"), job.log
    assert job.run.steps() == [1]
    assert run_status(job.run).state == "stopped"
    (again,) = slurm_job.submit(job.script, job.run)
    assert cluster.wait_for(again, *ENDED)["JobState"] == "COMPLETED"
    assert job.run.steps() == [1, 2]


def test_scancelled_job_is_not_requeued(cluster, submit):
    job = submit("hang()", "training.steps=5")
    job.started()
    subprocess.run(["scancel", job.id], check=True, timeout=30)
    fields = cluster.wait_for(job.id, "CANCELLED", seconds=30)
    assert fields["Restarts"] == "0"
    assert not list(job.run.path.glob("rank-*.1"))
    wait_until(lambda: run_status(job.run).state in ("lost", "stopped"), 20)


def test_a_second_submission_of_a_run_is_refused(cluster, submit):
    job = submit("hang()", "cluster.nodes=1")
    job.started(ranks=2)
    assert "job " + job.id in (busy_with(job.run) or "")
    (found,) = check_job(job.script, job.run)
    assert found.text.startswith(f"{job.run}: job {job.id} (RUNNING) already holds this run")
    second = commands.submit(job.script, job.run)  # past the check, as when two people submit in one moment
    cluster.wait_for(second, "FAILED", seconds=60)
    assert cluster.job(second)["ExitCode"] == "3:0"
    assert f"is being trained by job {job.id}" in (job.run.logs / f"slurm-{second}.log").read_text()
    assert cluster.job(job.id)["JobState"] == "RUNNING"
    stop_run(job.run, now=True)
    cluster.wait_for(job.id, "CANCELLED")
    assert run_status(job.run).state in ("stopped", "finished")


def test_chain_resumes_until_done_and_cancels_the_rest(cluster, submit):
    job = submit("if start < 1: hang()\nsave(2)", "training.steps=2", chain=3)
    job.started()
    first, second, third = read_job(job.run).jobs
    subprocess.run(["scancel", "--signal=USR2", first], check=True, timeout=30)
    assert cluster.wait_for(first, *ENDED)["Restarts"] == "0"
    assert cluster.wait_for(second, *ENDED)["JobState"] == "COMPLETED"
    assert cluster.wait_for(third, *ENDED)["JobState"] == "CANCELLED"
    assert f"job {second} resumes" in job.log
    assert job.run.steps() == [1, 2]


def test_container_profile_apptainer(cluster, submit, tmp_path):
    """The apptainer profile, with a stand-in that shows what it was asked for."""
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "apptainer $*"\nshift 7\nexec "$@"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    python = commands.shutil.which("python3")
    profile = tmp_path / "site.sh"
    shipped = ROOT / "slurm/profiles/apptainer.sh"
    text = shipped.read_text(encoding="utf-8").replace("RANK_PYTHON=python3", "RANK_PYTHON=$PYTHON")
    profile.write_text(f"export PATH={stand_in.parent}:$PATH IMAGE=image.sif\n{text}", encoding="utf-8")
    job = submit("save(1)", profile=str(profile))
    assert cluster.wait_for(job.id, *ENDED)["JobState"] == "COMPLETED", job.log
    assert job.log.count("apptainer exec --nv --bind") == 4
    assert python is not None


def test_impossible_job_is_refused_by_sbatch_test_only(cluster, submit):
    job = submit("save(1)")
    cluster.wait_for(job.id, *ENDED)
    assert "to start at" in commands.test_only(job.script)
    for impossible in ("--partition=nowhere", "--nodes=4"):
        with pytest.raises(PreflightError, match=r"^sbatch: "):
            commands.test_only(job.script.replace("--nodes=2", impossible))
