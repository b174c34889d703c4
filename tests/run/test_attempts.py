"""The history of a run's attempts: what it keeps, and what can be read off it."""

import json
import os

import pytest

from megatrain.base.errors import PreflightError
from megatrain.run.attempts import (
    attempts_without_progress,
    ended,
    newest_step,
    read_attempts,
    unreliable_nodes,
    write_attempts,
)
from tests.run.conftest import an_attempt

OLD = {"job": "7", "host": "n1", "pid": 12, "nodes": ["n1"], "ranks": 2, "started": 1.5, "start_step": 3}


def test_what_is_written_is_read(run):
    assert read_attempts(run) == []
    history = [an_attempt(nodes=["a"], failed_nodes=["a"], error="odd"), an_attempt(ended=None, end_step=None)]
    write_attempts(run, history)
    assert read_attempts(run) == history


def test_a_history_of_an_earlier_version_is_read(run):
    run.attempts.write_text(json.dumps([OLD]), encoding="utf-8")
    (attempt,) = read_attempts(run)
    assert (attempt.job, attempt.started, attempt.token, attempt.start_ticks) == ("7", 1.5, None, None)


def test_fields_of_a_newer_version_neither_erase_the_history_nor_are_lost(run):
    newer = OLD | {"ended": 2.0, "end_step": 3, "color": {"deep": [1]}}
    run.attempts.write_text(json.dumps([newer] * 3), encoding="utf-8")
    assert attempts_without_progress(read_attempts(run)) == 3
    write_attempts(run, [ended(run, attempt) for attempt in read_attempts(run)])
    assert [one["color"] for one in json.loads(run.attempts.read_text())] == [{"deep": [1]}] * 3


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "null", "5", "{}", "[1]", "[{}]", "[" * 100_000, '{"a": NaN}', "\0" * 8, b"\xff\xfe"),
        *(
            json.dumps([OLD | change])
            for change in (
                {"pid": "12"},
                {"pid": -1},
                {"pid": 10**30},
                {"pid": True},
                {"started": "now"},
                {"started": 1e300},
                {"start_step": -5},
                {"start_step": 1.5},
                {"nodes": "n1"},
                {"nodes": [5]},
                {"failed_nodes": {"n1": 1}},
                {"job": 7},
                {"job": "--all"},
                {"job": "7\n8"},
                {"host": "h" * 300},
                {"exit_code": 10**9},
                {"error": ["odd"]},
                {"token": 5},
            )
        ),
    ],
)
def test_a_damaged_history_is_named_and_not_taken_for_none(run, content):
    run.attempts.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PreflightError, match=r"attempts\.json: .*move it away"):
        read_attempts(run)


def test_a_named_pipe_in_its_place_is_refused_at_once(run):
    os.mkfifo(run.attempts)
    with pytest.raises(PreflightError, match="a named pipe"):
        read_attempts(run)


def test_an_error_is_one_printable_line_whatever_it_holds(run):
    write_attempts(run, [an_attempt(error="\x1b[2Jodd\nlines \udc80 " + "x" * 10_000)])
    (attempt,) = read_attempts(run)
    assert attempt.error.startswith(r"\x1b[2Jodd\nlines \x80 xxx")
    assert len(attempt.error) == 2000


def test_a_folder_that_cannot_be_written_is_one_message(run, monkeypatch):
    run.attempts.mkdir()
    with pytest.raises(PreflightError, match=r"attempts\.json: cannot be written: Is a directory"):
        write_attempts(run, [an_attempt()])
    assert [path.name for path in run.path.iterdir()] == ["attempts.json"], "no half-written file stays"


def test_attempts_without_progress_are_counted_from_the_end(run):
    assert attempts_without_progress([]) == 0
    assert attempts_without_progress([an_attempt(0, 5), an_attempt(5, 5), an_attempt(5, 5)]) == 2
    assert attempts_without_progress([an_attempt(5, 5), an_attempt(5, 9)]) == 0
    assert attempts_without_progress([an_attempt(5, 5, started=1.0), an_attempt(5, 5, started=3.0)], since=2.0) == 1
    running = an_attempt(5, None, ended=None)
    assert attempts_without_progress([an_attempt(5, 5), running]) == 1, "the one that runs has not failed yet"


def test_a_node_is_unreliable_from_its_second_failure(run):
    once = [an_attempt(failed_nodes=["a"]), an_attempt(failed_nodes=["b"])]
    assert unreliable_nodes(once) == []
    assert unreliable_nodes([*once, an_attempt(failed_nodes=["b"])]) == ["b"]


def test_the_newest_checkpoint_is_where_a_run_stands(run):
    assert newest_step(run) == 0
    run.step(7).mkdir(parents=True)
    (run.step(7) / "MANIFEST.json").touch()
    assert newest_step(run) == 7
