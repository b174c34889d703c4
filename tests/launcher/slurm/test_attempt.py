"""One start of a run: who may begin, what becomes of it, and what its history says."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from launcher.planning.plan import make_plan
from launcher.run_files import prepare_run
from launcher.slurm import attempt as attempts_of
from launcher.slurm.attempt import attempted, begin, living_owner, node_is_to_blame, verdict
from launcher.slurm.clients import NoAnswerError
from launcher.slurm.job_file import JobFile, read_job, update_job
from megatrain.errors import ExitCode, PreflightError
from megatrain.monitor.attempts import Attempt, Outcome, read_attempts, write_attempts

CRASH = Outcome(exit_code=1, error="ValueError: odd", rank=3, host="n2", time=0.0)
SAVED = Outcome(exit_code=75, error="SIGUSR2", rank=0, host="n1", time=0.0)
DATA = Outcome(exit_code=4, error="data/train: is gone", rank=0, host="n1", time=0.0)


def an_attempt(start=0, end=0, **fields):
    given = {"job": "7", "host": "n1", "pid": 1, "ranks": 2, "started": 10.0, "ended": 20.0}
    return Attempt(**given | {"start_step": start, "end_step": end} | fields)


@pytest.fixture
def run(tiny, here):
    return prepare_run(tiny(), make_plan(tiny()).chosen)


@pytest.mark.parametrize(
    ("history", "outcome", "code", "book", "requeue", "exit_code", "words"),
    [
        ([(0, 20)], None, 0, JobFile(), False, 0, "finished: step 20, after 1 starts"),
        ([(0, 5)], SAVED, 0, JobFile(), True, 75, "saved step 5; queued again"),
        ([(0, 5)], SAVED, 0, JobFile(stop=True), False, 75, "stopped at step 5, as asked"),
        ([(0, 0)], SAVED, 0, JobFile(), True, 75, "no new checkpoint (1 of 4 starts); queued again"),
        ([(0, 5)], CRASH, 1, JobFile(), True, 1, "saved step 5; queued again after: ValueError: odd"),
        ([(0, 5)], None, 137, JobFile(), True, 1, "the ranks ended with 137, and said nothing"),
        ([(0, 0)], DATA, 4, JobFile(), False, 4, "for it would fail again: data/train: is gone"),
        ([(5, 5)] * 4, CRASH, 1, JobFile(), False, 1, "given up: 4 starts in a row without a new checkpoint"),
        ([(5, 5)] * 4, SAVED, 0, JobFile(), False, 75, "given up: 4 starts in a row"),
        ([(5, 5)] * 3 + [(5, 6)], CRASH, 1, JobFile(), True, 1, "saved step 6; queued again"),
        ([(5, 5)] * 4, CRASH, 1, JobFile(submitted=15.0), True, 1, "queued again"),
    ],
)
def test_the_verdict(tiny, history, outcome, code, book, requeue, exit_code, words):
    attempts = [an_attempt(*steps) for steps in history]
    said = verdict(tiny(), attempts, attempts[-1], outcome, code, book)
    assert (said.requeue, said.exit_code) == (requeue, exit_code)
    assert words in said.words


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        ("AcceleratorError: CUDA error: uncorrectable ECC error encountered", True),
        ("DistBackendError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)", True),
        ("RuntimeError: No CUDA-capable device is detected", True),
        ("OSError: [Errno 28] No space left on device: '/tmp/x'", True),
        ("AcceleratorError: CUDA error: an illegal memory access was encountered", False),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:4711", False),
        ("ValueError: odd", False),
        ("hung: no progress for 600 s in a step", False),
    ],
)
def test_a_node_is_blamed_for_what_only_a_node_does(error, blamed):
    assert node_is_to_blame(replace(CRASH, error=error)) == blamed


def test_a_run_is_claimed_once(run):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        begin(run, ranks=2, nodes=[])
        (mine,) = read_attempts(run)
        write_attempts(run, [Attempt(**{name: getattr(mine, name) for name in mine.__slots__} | {"pid": process.pid})])
        with pytest.raises(PreflightError, match=f"is being trained by process {process.pid} on .*megatrain stop"):
            begin(run, ranks=2, nodes=[])
    finally:
        process.communicate(b"\n")
    assert begin(run, ranks=2, nodes=[]) == 1, "its owner is gone"
    lost = read_attempts(run)[0]
    assert (lost.exit_code, lost.end_step) == (None, 0)
    assert "without a word" in (lost.error or "")


def test_a_number_that_another_process_has_now_is_not_the_owner(run):
    old = an_attempt(job=None, host=os.uname().nodename, pid=os.getppid(), started=1.0, ended=None)
    assert living_owner(run, old, None) is None, "the process is younger than the attempt"
    now = an_attempt(job=None, host=os.uname().nodename, pid=os.getppid(), started=time.time(), ended=None)
    assert living_owner(run, now, None) is not None


def test_a_start_by_hand_is_closed_however_it_ends(run):
    assert attempted(run, 2, ["here"], lambda index: 75 + index) == 75
    with pytest.raises(ZeroDivisionError):
        attempted(run, 2, ["here"], lambda index: index // 0)
    assert [one.exit_code for one in read_attempts(run)] == [75, ExitCode.CRASH]
    assert all(one.ended is not None for one in read_attempts(run))


def test_a_lost_attempt_names_the_nodes_that_are_down(run, monkeypatch):
    monkeypatch.setattr(attempts_of.clients, "nodes_down", lambda nodes: ["n2"])
    write_attempts(run, [an_attempt(ended=None, nodes=["n1", "n2"])])
    begin(run, ranks=2, nodes=["n1", "n3"], job="7")
    lost, now = read_attempts(run)
    assert lost.failed_nodes == ["n2"]
    assert lost.error == "lost with n2"
    assert now.nodes == ["n1", "n3"]


def test_a_controller_that_is_away_is_asked_again(monkeypatch, capsys):
    monkeypatch.setattr(attempts_of, "_ASK_AGAIN_SECONDS", 0.01)
    answers = [NoAnswerError("scontrol: Unable to contact slurm controller"), NoAnswerError("again"), "at last"]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert attempts_of._patiently(ask) == "at last"
    assert capsys.readouterr().out.count("asking again") == 1
    monkeypatch.setattr(attempts_of, "_AWAY_SECONDS", 0.0)
    answers[:] = [NoAnswerError("away")] * 5
    with pytest.raises(NoAnswerError):
        attempts_of._patiently(ask)
    answers[:] = [PreflightError("scontrol: Access denied"), "too late"]
    with pytest.raises(PreflightError, match="denied"):
        attempts_of._patiently(ask)


def test_the_book_of_jobs(run):
    assert read_job(run) == JobFile()
    update_job(run, jobs=["1", "2"])
    assert update_job(run, stop=True) == JobFile(jobs=["1", "2"], stop=True) == read_job(run)
    run.job.write_text("{", encoding="utf-8")
    assert read_job(run) == JobFile()
