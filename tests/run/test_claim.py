"""The fencing token: a trainer whose run another attempt has, stops and writes nothing."""

import json
import shutil

import pytest

from megatrain.base.errors import CheckpointError, PreflightError
from megatrain.run.attempts import read_attempts, write_attempts
from megatrain.run.claim import VARIABLE, Claim, close_attempt, current, superseded
from tests.run.conftest import an_attempt

OURS = an_attempt(ended=None, token="t")
LATER = an_attempt(ended=None, token="u", job="9")


@pytest.mark.parametrize("text", ["0", "3:abc", "12:"])
def test_a_claim_passes_through_the_environment(text):
    assert str(Claim.parse(text)) == text.rstrip(":")


@pytest.mark.parametrize("text", ["", "x", "-1", "٣", ":t", "9" * 5000])
def test_what_is_no_claim_is_none(text):
    assert Claim.parse(text) is None


@pytest.mark.parametrize(
    ("history", "claim", "words"),
    [
        ([OURS], "0:t", None),
        ([], "0:t", None),
        ([OURS], "0", None),
        ([OURS], "", None),
        ([OURS.model_copy(update={"ended": 20.0}), LATER], "0:t", "job 9 has started a newer attempt"),
        ([OURS, LATER], "0", "job 9 has started a newer attempt"),
        ([LATER], "0:t", "job 9 has started a newer attempt"),  # of a history that was begun anew
        ([OURS.model_copy(update={"ended": 20.0})], "0:t", "this attempt was taken for lost"),
    ],
)
def test_superseded_attempt_by_its_fencing_token(run, monkeypatch, history, claim, words):
    write_attempts(run, history)
    assert superseded(run, Claim.parse(claim)) == words
    monkeypatch.setenv(VARIABLE, claim)
    if words is None:
        with current(run):
            (run.path / "committed").touch()
        return
    with pytest.raises(PreflightError, match=f"{words}; this trainer stops, and writes nothing more"), current(run):
        (run.path / "committed").touch()
    assert not (run.path / "committed").exists()


def test_a_damaged_history_names_nobody_else(run):
    run.attempts.write_text("{", encoding="utf-8")
    assert superseded(run, Claim(0, "t")) is None


def test_a_folder_that_was_deleted_is_not_made_again(run):
    shutil.rmtree(run.path)
    with pytest.raises(CheckpointError, match="is gone: it was moved or deleted"), current(run):
        pass
    with pytest.raises(PreflightError, match=r"attempts\.json: is gone"):
        close_attempt(run, Claim(0, "t"))
    assert not run.path.exists()


def test_only_the_attempt_that_has_the_run_closes_it_and_once(run):
    write_attempts(run, [OURS])
    assert close_attempt(run, Claim(0, "t"), exit_code=75).exit_code == 75
    with pytest.raises(PreflightError, match="taken this one for lost"):
        close_attempt(run, Claim(0, "t"), exit_code=0)
    with pytest.raises(PreflightError, match="another one has the run"):
        close_attempt(run, Claim(0, "u"), exit_code=0)
    with pytest.raises(PreflightError, match="another one has the run"):
        close_attempt(run, Claim(1, "u"), exit_code=0)
    assert read_attempts(run)[0].exit_code == 75


def test_commit_continues_where_the_lock_fails_and_the_fencing_token_holds(run, monkeypatch):
    write_attempts(run, [OURS])
    (run.path / "attempts.lock").mkdir()
    monkeypatch.setenv(VARIABLE, "0:t")
    with current(run):
        (run.path / "committed").touch()
    assert json.loads(run.attempts.read_text())
