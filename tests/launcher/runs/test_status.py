"""Where a run is, put together from what it left; without Slurm."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from launcher.commands.status import lines, table
from launcher.planning.plan import make_plan
from launcher.runs import status as status_of
from launcher.runs.logs import newest_log, read_log
from launcher.runs.prepare import prepare_run
from launcher.runs.status import all_statuses, goodput, run_status
from launcher.slurm.commands import NoAnswerError
from launcher.slurm.job_record import update_job
from megatrain.base.errors import ConfigError
from megatrain.run.attempts import Attempt, write_attempts
from megatrain.run.directory import RunDir
from megatrain.run.heartbeat import write_heartbeat
from tests.launcher.conftest import saved


def an_attempt(**fields):
    given = {"job": None, "host": "elsewhere", "pid": 1, "ranks": 2, "started": 100.0, "start_step": 0}
    return Attempt(**given | fields)


@pytest.fixture
def run(tiny, here, monkeypatch):
    monkeypatch.delenv("MEGATRAIN_ATTEMPT", raising=False)
    return prepare_run(tiny(), make_plan(tiny()).chosen)


def report(run, *steps, seconds=2.0):
    rows = [
        {"step": step, "loss": 5.0 - step / 10, "step_seconds": seconds, "tokens_per_second": 8 * 128 / seconds}
        for step in steps
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_status_of_a_run_that_was_never_started(run):
    one = run_status(run)
    assert (one.state, one.step, one.attempts, one.goodput, one.eta_seconds) == ("prepared", 0, 0, None, None)


def test_status_of_a_running_run(run, monkeypatch):
    monkeypatch.setenv("MEGATRAIN_ATTEMPT", "1")
    write_attempts(
        run, [an_attempt(ended=120.0, end_step=4, exit_code=1, error="odd"), an_attempt(started=time.time())]
    )
    write_heartbeat(run, step=11, activity="training")
    report(run, 5, 10)
    saved(run, 10)
    one = run_status(run)
    assert (one.state, one.step, one.total_steps, one.restarts) == ("running", 11, 20, 1)
    assert one.eta_seconds == pytest.approx(18.0)
    assert one.tokens_per_second == pytest.approx(8 * 128 / 2.0)
    assert (one.checkpoint_step, one.last_error) == (10, None)
    assert "training" in one.detail
    assert "progress step 11 of 20, loss 4.000" in "\n".join(lines(one))


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"ended": 120.0, "end_step": 4, "exit_code": 75}, "stopped"),
        ({"ended": 120.0, "end_step": 4, "exit_code": 1, "error": "odd"}, "failed"),
        ({}, "lost"),
    ],
)
def test_status_of_a_run_that_nobody_trains(run, fields, state):
    write_attempts(run, [an_attempt(**fields)])
    saved(run, 4)
    one = run_status(run)
    assert (one.state, one.step) == (state, 4)
    assert one.last_error == fields.get("error")


def test_status_of_a_finished_run(run):
    write_attempts(run, [an_attempt(ended=120.0, end_step=20, exit_code=0)])
    saved(run, 20)
    assert run_status(run).state == "finished"


def test_a_run_given_in_tokens_is_finished_when_it_has_read_them(tiny, here):
    """After steps of another batch size as well: five of 8 sequences, then three of 16, of 88 that it takes."""
    config = tiny("training.steps=null", f"training.tokens={80 * 128}", "training.global_batch_size=16")
    run = prepare_run(config, make_plan(config).chosen)
    write_attempts(run, [an_attempt(ended=120.0, end_step=5, exit_code=75)])
    saved(run, 5, samples=40)
    one = run_status(run)
    assert (one.state, one.step, one.total_steps) == ("stopped", 5, 8)
    saved(run, 8, samples=88, batches=[[0, 0, 8], [5, 40, 16]])
    assert (run_status(run).state, run_status(run).total_steps) == ("finished", 8)


def test_a_run_past_its_end_is_not_part_of_less(tiny, here):
    config = tiny("training.steps=7")
    run = prepare_run(config, make_plan(config).chosen)
    write_attempts(run, [an_attempt(ended=120.0, end_step=20, exit_code=0)])
    saved(run, 20)
    assert run_status(run).state == "finished"
    assert "step 20 of 20" in "\n".join(lines(run_status(run)))


def test_goodput_counts_each_step_once_over_all_the_time_on_the_nodes():
    attempts = [an_attempt(ended=140.0), an_attempt(started=200.0, ended=260.0)]
    rows = [{"step": step, "loss": 1.0, "step_seconds": 2.0} for step in (10, 20)]
    rows.insert(1, {"step": 10, "validation_loss": 1.0})
    assert goodput(rows, attempts) == pytest.approx(20 * 2.0 / 100.0)
    assert goodput([], attempts) is None
    assert goodput(rows, []) is None


def test_slurm_is_asked_once_however_many_runs_there_are(run, here, monkeypatch):
    asked = []
    monkeypatch.setattr(status_of.commands, "job_states", lambda jobs: asked.append(set(jobs)) or {})
    shutil.copytree(run.path, here / "runs/other")
    for number, folder in enumerate(("tiny", "other")):
        write_attempts(RunDir(here / "runs" / folder), [an_attempt(job=str(number))])
        update_job(RunDir(here / "runs" / folder), jobs=[f"{number}0"])
    assert len(all_statuses(Path("runs"))) == 2
    assert asked == [{"0", "00", "1", "10"}]


def test_heartbeat_tells_who_trains_when_slurm_does_not_answer(run, monkeypatch):
    def no_answer(jobs):
        raise NoAnswerError("squeue: Unable to contact slurm controller")

    monkeypatch.setattr(status_of.commands, "job_states", no_answer)
    write_attempts(run, [an_attempt(job="7", started=time.time())])
    assert run_status(run).state == "lost"
    monkeypatch.setenv("MEGATRAIN_ATTEMPT", "0")
    write_heartbeat(run, step=3, activity="training")
    assert run_status(run).detail == "job 7 (Slurm does not answer), training"


def test_all_runs_in_a_table(run, here):
    write_attempts(run, [an_attempt(ended=120.0, end_step=20, exit_code=0)])
    saved(run, 20)
    (here / "runs/broken").mkdir()
    (here / "runs/broken/config.yaml").write_text("{", encoding="utf-8")
    (line,) = table(all_statuses(Path("runs")))
    assert line.startswith("runs/tiny  finished")
    assert table([]) == []


def test_logs_are_the_newest_ones_last_lines(run):
    with pytest.raises(ConfigError, match="has no log yet"):
        list(read_log(run, lines=10))
    run.logs.mkdir(exist_ok=True)
    (run.logs / "rank-0.log").write_text("old\n", encoding="utf-8")
    os.utime(run.logs / "rank-0.log", (1, 1))
    job = run.logs / "slurm-7.log"
    job.write_text("".join(f"line {number}\n" for number in range(50)), encoding="utf-8")
    assert newest_log(run) == job
    assert "".join(read_log(run, lines=2)) == "line 48\nline 49\n"
    assert "".join(read_log(run, lines=5, rank=0)) == "old\n"
    with pytest.raises(ConfigError, match="no log of rank 3"):
        list(read_log(run, lines=10, rank=3))


def test_following_ends_with_the_run(run, monkeypatch):
    from launcher.runs import logs

    monkeypatch.setattr(logs, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    run.logs.mkdir(exist_ok=True)
    (run.logs / "rank-0.log").write_text("the end\n", encoding="utf-8")
    write_attempts(run, [an_attempt(ended=120.0, end_step=4, exit_code=75)])
    assert "".join(read_log(run, lines=10, follow=True)) == "the end\n"
