"""How an attempt ended: the first rank that says so is kept, unless it only tells of another one that is gone."""

import json

import pytest

from megatrain.base.errors import PreflightError
from megatrain.run.attempts import write_attempts
from megatrain.run.claim import VARIABLE, Claim
from megatrain.run.outcomes import Outcome, last_error, read_outcome, record_outcome
from tests.run.conftest import an_attempt


@pytest.fixture
def rank(run, monkeypatch):
    write_attempts(run, [an_attempt(ended=None, token="t")])
    monkeypatch.setenv(VARIABLE, "0:t")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "node7")


def test_the_first_outcome_of_an_attempt_stays(run, rank):
    record_outcome(run, 1, "the cause")
    record_outcome(run, 1, "its consequence")
    outcome = read_outcome(run, 0)
    assert (outcome.error, outcome.rank, outcome.host, outcome.retryable) == ("the cause", 3, "node7", True)
    assert last_error(run) == "rank 3 on node7: the cause"


def test_who_was_not_started_as_an_attempt_leaves_none(run, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    record_outcome(run, 1, "nobody counts this start")
    assert not run.outcomes.exists()


def test_outcome_of_a_lost_peer_gives_way_to_the_cause(run, rank):
    record_outcome(run, 1, "RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:4711", rank=0)
    record_outcome(run, 1, "DistBackendError: NCCL error: unhandled system error", rank=1)
    assert read_outcome(run, 0).rank == 0
    record_outcome(run, 1, "AcceleratorError: CUDA error: uncorrectable ECC error encountered", rank=2)
    record_outcome(run, 1, "ValueError: odd", rank=3)
    assert read_outcome(run, 0).rank == 2


def test_outcome_says_whether_it_is_retryable(run, rank):
    record_outcome(run, 1, "the loss is not finite", retryable=False)
    assert read_outcome(run, 0).retryable is False


def test_superseded_attempt_records_no_outcome(run, rank):
    write_attempts(run, [an_attempt(token="t"), an_attempt(ended=None, token="u")])
    record_outcome(run, 1, "late")
    record_outcome(run, 1, "late", claim=Claim(1, "another"))
    assert not run.outcomes.exists()


def test_full_disk_does_not_raise_in_a_dying_rank(run, rank, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    record_outcome(run, 1, "odd")
    assert list(run.outcomes.iterdir()) == [], "half an outcome would keep the place of a whole one"
    run.outcomes.rmdir()
    run.outcomes.write_text("a file")
    record_outcome(run, 1, "odd")


@pytest.mark.parametrize("content", ["{", "[]", '{"exit_code": "1"}', '{"error": 5}', "[" * 100_000])
def test_a_damaged_outcome_is_named(run, content):
    run.outcomes.mkdir()
    (run.outcomes / "0.json").write_text(content, encoding="utf-8")
    with pytest.raises(PreflightError, match=r"outcomes/0\.json: "):
        read_outcome(run, 0)


def test_an_outcome_of_an_earlier_version_is_read(run):
    run.outcomes.mkdir()
    old = {"exit_code": 1, "error": "odd", "rank": 3, "host": "n", "time": 5.5}
    (run.outcomes / "0.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_outcome(run, 0) == Outcome(**old, retryable=True)
