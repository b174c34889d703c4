"""The history of a run's starts: what it keeps, and what can be read off it."""

import threading

import pytest

from megatrain.monitor import attempts
from megatrain.monitor.attempts import (
    Attempt,
    fruitless,
    last_error,
    locked,
    newest_step,
    read_attempts,
    read_heartbeat,
    read_outcome,
    record_outcome,
    unreliable_nodes,
    write_attempts,
    write_heartbeat,
)
from megatrain.run_dir import RunDir


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def an_attempt(start=0, end=0, started=10.0, **fields):
    given = {"job": None, "host": "h", "pid": 1, "ranks": 2, "started": started, "ended": started + 1}
    return Attempt(**given | {"start_step": start, "end_step": end} | fields)


def test_what_is_written_is_read(run):
    history = [an_attempt(nodes=["a"], failed_nodes=["a"], error="odd"), an_attempt(ended=None, end_step=None)]
    write_attempts(run, history)
    assert read_attempts(run) == history
    run.attempts.write_text("[{}]", encoding="utf-8")
    assert read_attempts(run) == []


def test_starts_in_vain_are_counted_from_the_end(run):
    assert fruitless([]) == 0
    assert fruitless([an_attempt(0, 5), an_attempt(5, 5), an_attempt(5, 5)]) == 2
    assert fruitless([an_attempt(5, 5), an_attempt(5, 9)]) == 0
    assert fruitless([an_attempt(5, 5, started=1.0), an_attempt(5, 5, started=3.0)], since=2.0) == 1
    running = an_attempt(5, None, ended=None)
    assert fruitless([an_attempt(5, 5), running]) == 1, "the one that runs has not failed yet"


def test_a_node_is_unreliable_from_its_second_failure(run):
    once = [an_attempt(failed_nodes=["a"]), an_attempt(failed_nodes=["b"])]
    assert unreliable_nodes(once) == []
    assert unreliable_nodes([*once, an_attempt(failed_nodes=["b"])]) == ["b"]


def test_the_first_outcome_of_an_attempt_stays(run, monkeypatch):
    record_outcome(run, 1, "nobody counts this start")
    monkeypatch.setenv(attempts.VARIABLE, "0")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    record_outcome(run, 1, "the cause")
    record_outcome(run, 1, "its consequence")
    outcome = read_outcome(run, 0)
    assert outcome is not None
    assert (outcome.error, outcome.rank, outcome.host) == ("the cause", 3, "node7")
    write_attempts(run, [an_attempt()])
    assert last_error(run) == "rank 3 on node7: the cause"


def test_a_heartbeat_tells_where_the_run_is(run, monkeypatch):
    assert read_heartbeat(run) is None
    monkeypatch.setenv(attempts.VARIABLE, "4")
    write_heartbeat(run, step=12, activity="training")
    beat = read_heartbeat(run)
    assert beat is not None
    assert (beat.attempt, beat.step, beat.activity) == (4, 12, "training")


def test_the_newest_checkpoint_is_where_a_run_stands(run):
    assert newest_step(run) == 0
    run.step(7).mkdir(parents=True)
    (run.step(7) / "MANIFEST.json").touch()
    assert newest_step(run) == 7


def test_one_at_a_time(run):
    inside, most = [], []

    def enter() -> None:
        with locked(run):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_lock_that_its_holder_left_is_taken(run, monkeypatch):
    lock = run.path / ".attempts.lock"
    lock.mkdir()
    left = lock.stat().st_mtime_ns
    monkeypatch.setattr(attempts, "_LOCK_SECONDS", 0.1)
    with locked(run):
        assert lock.stat().st_mtime_ns > left, "a lock of its own"
    assert not lock.exists()
