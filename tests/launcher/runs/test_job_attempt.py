"""One attempt of a job: its end, and how Slurm is asked."""

import json
import subprocess
import sys

import pytest

from launcher.planning.plan import make_plan
from launcher.runs import job_attempt
from launcher.runs.job_attempt import end
from launcher.runs.prepare import prepare_run
from launcher.slurm.commands import JobState, NoAnswerError
from launcher.slurm.job_record import JobRecord, read_job, update_job
from megatrain.base.errors import PreflightError
from megatrain.run.attempts import Attempt, read_attempts, write_attempts
from megatrain.run.claim import Claim
from megatrain.run.outcomes import record_outcome

OURS = Attempt(job="7", host="n1", pid=1, ranks=2, token="t", started=10.0, start_step=0)
CLAIM = Claim(0, "t")


@pytest.fixture
def run(tiny, here):
    return prepare_run(tiny(), make_plan(tiny()).chosen)


@pytest.fixture
def requeued(run, monkeypatch):
    """The jobs that were requeued, of a Slurm in which job 7 runs."""
    found = []
    write_attempts(run, [OURS])
    monkeypatch.setattr(job_attempt.commands, "job_states", lambda jobs: {"7": JobState("7", "RUNNING", "", "n1", "")})
    monkeypatch.setattr(job_attempt.commands, "requeue", lambda job, exclude: found.append(job))
    return found


def test_failed_attempt_is_closed_and_requeued_with_its_error(run, requeued, capsys):
    record_outcome(run, 1, "ERR_TRUNCATED in CUDA RUNTIME", claim=CLAIM)
    assert end(run, CLAIM, 1, "7") == 1
    assert capsys.readouterr().out.endswith("requeued after: ERR_TRUNCATED in CUDA RUNTIME\n")
    assert requeued == ["7"]
    assert read_attempts(run)[0].exit_code == 1


def test_job_of_a_superseded_attempt_is_not_requeued(run, requeued, capsys):
    write_attempts(run, [OURS.model_copy(update={"ended": 20.0}), OURS.model_copy(update={"token": "u", "job": "8"})])
    assert end(run, CLAIM, 3, "7") == 3
    assert "job 8 has started a newer attempt; this job is not requeued" in capsys.readouterr().out
    assert requeued == []
    assert read_attempts(run)[1].ended is None


def test_full_disk_does_not_change_the_verdict(run, requeued, monkeypatch, capsys):
    from megatrain.run import attempts as history

    def full(path, value):
        raise PreflightError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(history, "write_record", full)
    assert end(run, CLAIM, 137, "7") == 1
    said = capsys.readouterr()
    assert "attempts.json: cannot be written: No space left on device; that this attempt ended" in said.err
    assert requeued == ["7"]


@pytest.mark.parametrize("harm", ["outcome", "history", "book", "config"])
def test_damaged_file_is_one_message_and_keeps_the_exit_code_of_the_ranks(run, requeued, monkeypatch, capsys, harm):
    paths = {"outcome": run.outcomes / "0.json", "history": run.attempts, "book": run.job, "config": run.config}
    run.outcomes.mkdir()
    paths[harm].write_text("[[", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["attempt", "end", str(run), "137"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("MEGATRAIN_ATTEMPT", str(CLAIM))
    assert job_attempt.main() == (1 if harm == "outcome" else 137)
    said = capsys.readouterr()
    assert str(paths[harm]) in said.out + said.err
    assert "Traceback" not in said.err


def test_controller_that_is_away_is_retried(monkeypatch, capsys):
    monkeypatch.setattr(job_attempt, "_ASK_AGAIN_SECONDS", 0.01)
    answers = [NoAnswerError("scontrol: Unable to contact slurm controller"), NoAnswerError("again"), "at last"]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert job_attempt._patiently(ask) == "at last"
    assert capsys.readouterr().out.count("asking again") == 1
    monkeypatch.setattr(job_attempt, "_AWAY_SECONDS", 0.0)
    answers[:] = [NoAnswerError("away")] * 5
    with pytest.raises(NoAnswerError):
        job_attempt._patiently(ask)
    answers[:] = [PreflightError("scontrol: Access denied"), "too late"]
    with pytest.raises(PreflightError, match="denied"):
        job_attempt._patiently(ask)


def test_job_record(run):
    assert read_job(run) == JobRecord()
    update_job(run, jobs=["1", "2"])
    assert update_job(run, stop=True) == JobRecord(jobs=["1", "2"], stop=True) == read_job(run)
    run.job.write_text(json.dumps({"jobs": ["1"], "newer": 5}), encoding="utf-8")
    assert update_job(run, stop=True).fields() == {"jobs": ["1"], "submitted": 0.0, "stop": True, "newer": 5}


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"jobs": 5}', '{"jobs": ["--all"]}', '{"jobs": [7]}', '{"stop": "no"}', "[" * 100_000]
)
def test_damaged_job_record_is_named(run, content):
    run.job.write_text(content, encoding="utf-8")
    with pytest.raises(PreflightError, match=r"job\.json: "):
        read_job(run)
    with pytest.raises(PreflightError, match=r"job\.json: "):
        update_job(run, stop=True)


def test_job_scripts_of_earlier_versions_still_find_it():
    command = [sys.executable, "-m", "launcher.slurm.attempt", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "begin" in done.stdout
