"""A rank that hangs is ended, with its stacks on disk; one that goes on is left alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import ctypes, signal, os, sys, threading, time
from megatrain.monitor import watchdog
from megatrain.monitor.watchdog import Watchdog
from megatrain.run.directory import RunDir
watchdog.GRACE_SECONDS = 0.2
run = RunDir(sys.argv[1])
dog = Watchdog(run, rank=0, hang_timeout_seconds=float(sys.argv[2]))
dog.beat("training", 3)
"""


@pytest.fixture
def rank(tmp_path):
    """rank(code): starts a rank that is watched; its limit in seconds."""

    def begin(code: str, limit: float = 0.6) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, str(tmp_path), str(limit)],
            cwd=ROOT,
            env=os.environ | {"MEGATRAIN_ATTEMPT": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def test_a_hanging_rank_ends_with_its_stacks(rank, tmp_path):
    process = rank("def where_it_hangs():\n    time.sleep(60)\nwhere_it_hangs()")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "rank 0: no progress for" in said
    assert "last: training, after step 3" in said
    assert "where_it_hangs" in (tmp_path / "logs/stacks-rank-0.txt").read_text()
    outcome = json.loads((tmp_path / "outcomes/0.json").read_text())
    assert outcome["exit_code"] == 1
    assert outcome["error"].startswith("hung: no progress for")


def test_also_where_no_python_thread_can_run(rank, tmp_path):
    """PyDLL keeps the interpreter's lock through the call: only the timer in C still works."""
    process = rank("def where_it_hangs():\n    ctypes.PyDLL(None).sleep(60)\ntime.sleep(0.3)\nwhere_it_hangs()")
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert "where_it_hangs" in (tmp_path / "logs/stacks-rank-0.txt").read_text()


def test_a_rank_that_makes_progress_is_left_alone(rank, tmp_path):
    code = "for _ in dog.watched(range(40), 'evaluation'):\n    time.sleep(0.1)\ndog.close()\nprint('the end')"
    said, complained = rank(code, limit=3).communicate(timeout=60)  # more than a busy machine holds up a step
    assert (said, complained) == ("the end\n", "")
    assert list((tmp_path / "logs").iterdir()) == [], "no stacks, no file"
    beat = json.loads((tmp_path / "heartbeat.json").read_text())
    assert (beat["step"], beat["activity"], beat["attempt"]) == (3, "evaluation", 0)


def test_a_rank_whose_run_another_start_has_stops_and_writes_nothing(rank, tmp_path):
    process = rank("for _ in dog.watched(range(600), 'training'):\n    time.sleep(0.1)")
    deadline = time.monotonic() + 20
    while not (tmp_path / "heartbeat.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    later = {"job": "9", "host": "h", "pid": 1, "ranks": 1, "started": 1.0, "start_step": 0, "token": "later"}
    (tmp_path / "attempts.json").write_text(json.dumps([later, later]))
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert (
        said == f"error: {tmp_path}: job 9 has started a newer attempt; this trainer stops, and writes nothing more\n"
    )
    assert not (tmp_path / "outcomes").exists()


OTHER = (
    "other = Watchdog(run, rank=1, hang_timeout_seconds=0.6)\n"
    "for _ in range(20):\n    time.sleep(0.1); other.{beat}('x')\n"
)


def test_a_rank_that_waits_for_a_slower_one_does_not_hang(rank, tmp_path):
    """The start of a large run: one rank still reads its share of a checkpoint, and the others wait in a collective."""
    said, _ = rank(OTHER.format(beat="beat_for_all") + "print('the end', flush=True); os._exit(0)").communicate(
        timeout=30
    )
    assert said == "the end\n"
    assert not list((tmp_path / "outcomes").glob("*"))


def test_a_rank_that_hangs_while_another_trains_is_ended(rank):
    """Nothing that ranks do together lets one of them go on for long without the others."""
    process = rank(OTHER.format(beat="beat") + "print('the end', flush=True); os._exit(0)")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "rank 0: no progress for" in said


def test_progress_of_an_earlier_start_is_none(rank, tmp_path):
    (tmp_path / "progress").touch()
    process = rank("time.sleep(60)")
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_rank_that_was_suspended_does_not_hang(rank, tmp_path):
    """Slurm stops the processes of a job that it suspends; the clock goes on."""
    process = rank("watchdog.GRACE_SECONDS = 60\nfor _ in range(20):\n    time.sleep(0.1); dog.beat('x')\ndog.close()")
    time.sleep(1.0)
    os.kill(process.pid, 19)
    time.sleep(2.0)
    os.kill(process.pid, 18)
    process.communicate(timeout=30)
    assert process.returncode == 0
