"""Whether a trainer on another machine lives, by its heartbeat, whatever the clocks say."""

import json
import threading
import time

import pytest

from megatrain.run import heartbeat
from megatrain.run.claim import VARIABLE
from megatrain.run.heartbeat import beats, read_heartbeat, write_heartbeat


@pytest.fixture
def beat(run, monkeypatch):
    """beat(seconds): a heartbeat of attempt 4, from a clock that is so far ahead."""
    monkeypatch.setenv(VARIABLE, "4:t")
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.3)
    monkeypatch.setattr(heartbeat, "_POLL_SECONDS", 0.02)

    def write(ahead: float, sequence: int = 0) -> None:
        clock = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(heartbeat.time, "time", lambda: clock + ahead)
            write_heartbeat(run, step=12, activity="training", sequence=sequence)

    return write


def test_a_heartbeat_tells_where_the_run_is(run, beat):
    assert read_heartbeat(run) is None
    beat(0)
    now = read_heartbeat(run)
    assert (now.attempt, now.token, now.step, now.activity) == (4, "t", 12, "training")


@pytest.mark.parametrize(
    ("ahead", "alive"), [(0, True), (-50, True), (50, True), (-70, False), (70, False), (1e7, False)]
)
def test_heartbeat_from_the_future_is_as_old_as_one_from_the_past(run, beat, ahead, alive):
    beat(ahead)
    assert beats(run, 4) == alive
    assert beats(run, 4, watch=False) == alive
    assert not beats(run, 5, watch=False), "of another attempt"


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_heartbeat_that_changes_is_alive_by_any_clock(run, beat, ahead, monkeypatch):
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 30)  # it ends at the first change
    beat(ahead, 1)
    threading.Timer(0.1, lambda: beat(ahead, 2)).start()
    assert beats(run, 4)


@pytest.mark.parametrize("content", ["{", "[]", '{"time": "now"}', "[" * 100_000, '{"time": 1e999}'])
def test_damaged_heartbeat_is_none(run, content):
    run.heartbeat.write_text(content, encoding="utf-8")
    assert read_heartbeat(run) is None
    assert not beats(run, 0, watch=False)


def test_heartbeat_of_an_earlier_version_is_read(run):
    old = {"time": 5.0, "attempt": None, "step": 3, "activity": "x"}
    run.heartbeat.write_text(json.dumps(old), encoding="utf-8")
    assert read_heartbeat(run).step == 3


def test_a_folder_that_was_deleted_is_not_made_again(run):
    run.path.rmdir()
    write_heartbeat(run, step=1, activity="training")
    assert not run.path.exists()
