"""Exactly one attempt has a run, whatever the clocks, the disks and Slurm do."""

import threading
import time

import pytest

from launcher.runs import claim as claim_of
from launcher.runs.claim import attempted
from launcher.runs.status import run_status
from launcher.slurm import commands
from megatrain.base.errors import ExitCode, PreflightError
from megatrain.run import heartbeat
from megatrain.run.attempts import read_attempts, write_attempts
from megatrain.run.claim import Claim
from megatrain.run.heartbeat import read_heartbeat, write_heartbeat
from megatrain.run.outcomes import record_outcome
from tests.launcher.runs.conftest import an_attempt, begin


@pytest.mark.parametrize("seconds", [-1e9, -30, 0, 30, 1e9])
def test_a_run_is_claimed_once_by_any_clock(run, launcher, seconds):
    (mine,) = read_attempts(run)
    write_attempts(run, [mine.model_copy(update={"started": max(0.0, mine.started + seconds)})])
    with pytest.raises(PreflightError, match=f"is being trained by process {launcher.pid} on .*megatrain stop"):
        begin(run)
    assert len(read_attempts(run)) == 1


def test_a_run_whose_history_was_deleted_is_claimed_once(run, launcher, monkeypatch):
    from megatrain.run import lock

    monkeypatch.setattr(lock, "_LAUNCHER_SECONDS", 0.1)
    run.attempts.unlink()
    with pytest.raises(PreflightError, match=r"is being trained by another process .*launcher\.lock"):
        begin(run)


def test_attempt_of_a_killed_launcher_is_closed_as_lost(run, launcher):
    launcher.kill()
    launcher.wait()
    assert begin(run).attempt == 1
    lost, now = read_attempts(run)
    assert (lost.exit_code, lost.end_step, now.ended) == (None, 0, None)
    assert "its end was not recorded" in (lost.error or "")
    assert lost.token != now.token


def test_outcome_of_a_rank_closes_an_attempt_that_its_launcher_could_not(run, launcher):
    claim = Claim(0, read_attempts(run)[0].token)
    record_outcome(run, 5, "checkpoints: cannot be written: No space left on device", claim=claim)
    launcher.kill()
    launcher.wait()
    one = run_status(run)
    assert (one.state, one.detail) == ("failed", "exit code 5, and its launcher could not record it")
    begin(run)
    lost, _ = read_attempts(run)
    assert (lost.exit_code, lost.error) == (5, "checkpoints: cannot be written: No space left on device")


def test_claim_race_has_one_winner(run, monkeypatch):
    """Slurm takes its time to answer: what was asked about is looked at again with the lock held."""
    write_attempts(run, [an_attempt(ended=None)])
    both = threading.Barrier(2, timeout=20)
    asked = []

    def slow(jobs):
        asked.append(list(jobs))
        if len(asked) <= 2:
            both.wait()
        return {job: commands.JobState(job, "RUNNING", "", "n1", "") for job in asked[-1] if job != "7"}

    monkeypatch.setattr(commands, "ask", slow)
    monkeypatch.setattr(commands, "nodes_down", lambda nodes: [])
    got, refused = [], []

    def start(job):
        try:
            got.append(begin(run, job))
        except PreflightError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(job,)) for job in ("8", "9")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 1)
    assert "is being trained by job" in refused[0]
    assert [attempt.ended is None for attempt in read_attempts(run)] == [False, True]


def test_no_lock_is_held_while_slurm_is_asked(run, monkeypatch):
    from megatrain.run.lock import launcher_lock, locked

    write_attempts(run, [an_attempt(ended=None)])
    asked = []

    def look(answer):
        with launcher_lock(run), locked(run):
            asked.append(answer)
        return answer

    monkeypatch.setattr(commands, "ask", lambda jobs: look({}))
    monkeypatch.setattr(commands, "nodes_down", lambda nodes: look([]))
    begin(run, "8")
    assert len(asked) == 2


@pytest.mark.parametrize(("ahead", "refused"), [(0.0, True), (1e7, False), (-1e7, False)])
def test_heartbeat_with_clock_skew_locks_nobody_out(run, monkeypatch, ahead, refused):
    write_attempts(run, [an_attempt(job=None, host="elsewhere", ended=None)])
    clock = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(heartbeat.time, "time", lambda: clock + ahead)
        write_heartbeat(run, step=3, activity="training", claim=Claim(0, None))
    if refused:
        with pytest.raises(PreflightError, match="trained by process 1 on elsewhere"):
            begin(run)
    else:
        assert begin(run).attempt == 1


def test_attempt_without_slurm_is_closed_however_it_ends(run):
    assert attempted(run, 2, ["here"], lambda claim: 75 + claim.attempt) == 75
    with pytest.raises(ZeroDivisionError):
        attempted(run, 2, ["here"], lambda claim: claim.attempt // 0)
    assert attempted(run, 2, ["here"], lambda claim: 9) == 9
    ended = read_attempts(run)
    assert [one.exit_code for one in ended] == [75, ExitCode.CRASH, 9]
    assert [one.error for one in ended][2] == "the ranks exited with 9 without recording an outcome"
    assert all(one.ended is not None for one in ended)
    assert read_heartbeat(run).activity == "starting"


def full(path, value):
    raise PreflightError(f"{path}: cannot be written: No space left on device")


@pytest.mark.parametrize("harm", ["full", "deleted", "damaged", "replaced"])
def test_exit_code_of_the_ranks_stays_when_the_attempt_cannot_be_closed(run, capsys, monkeypatch, harm):
    import shutil

    from megatrain.run import attempts as history

    def go(claim):
        if harm == "full":
            monkeypatch.setattr(history, "write_record", full)
        elif harm == "deleted":
            shutil.rmtree(run.path)
        elif harm == "damaged":
            run.attempts.write_text("{", encoding="utf-8")
        else:
            write_attempts(run, [an_attempt(ended=None, token="another")])
        return 5

    assert attempted(run, 2, ["here"], go) == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert said[0].endswith("; that this attempt ended with exit code 5 is not recorded")
    assert str(run) in said[0]
    assert run.path.exists() == (harm != "deleted")


def test_unwritable_folder_refuses_the_claim(run, monkeypatch):
    from megatrain.run import attempts as history

    monkeypatch.setattr(history, "write_record", full)
    with pytest.raises(PreflightError, match=r"attempts\.json: cannot be written: No space left on device"):
        attempted(run, 2, ["here"], lambda claim: 0)


def test_lost_attempt_names_the_nodes_that_are_down(run, monkeypatch):
    monkeypatch.setattr(claim_of.commands, "nodes_down", lambda nodes: ["n2"])
    write_attempts(run, [an_attempt(ended=None, nodes=["n1", "n2"])])
    begin(run, "7")
    lost, now = read_attempts(run)
    assert lost.failed_nodes == ["n2"]
    assert lost.error == "lost with n2"
    assert now.nodes == ["n1", "n3"]


def test_refused_claim_closes_the_lost_attempt_and_claims_nothing(run):
    def refuse(attempts):
        raise PreflightError(f"{len(attempts)} starts in vain")

    write_attempts(run, [an_attempt(ended=None)])
    with pytest.raises(PreflightError, match="1 starts in vain"):
        begin(run, "7", admit=refuse)
    (lost,) = read_attempts(run)
    assert lost.ended is not None


def test_resume_from_a_step_counts_progress_from_there(run):
    for step in (40, 60):
        run.step(step).mkdir(parents=True)
        (run.step(step) / "MANIFEST.json").touch()
    begin(run, resume="40")
    begin(run)
    assert [attempt.start_step for attempt in read_attempts(run)] == [40, 60]
    assert run.steps() == [40, 60], "the ranks set aside what is above, once they have verified the step"


def test_resume_never_starts_a_new_history_of_attempts(run, capsys):
    begin(run)
    run.step(40).mkdir(parents=True)
    (run.step(40) / "MANIFEST.json").touch()
    begin(run, resume="never")
    (only,) = read_attempts(run)
    assert only.start_step == 0
    assert run.steps() == []
    assert len(list(run.checkpoints.glob("abandoned-all-*/*"))) == 2
    assert "set aside: step 40" in capsys.readouterr().out
