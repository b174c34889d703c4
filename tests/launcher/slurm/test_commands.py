"""Slurm's commands: missing, failing and silent ones are told in a sentence; what they say is read."""

import pytest

from launcher.slurm import commands
from megatrain.base.errors import PreflightError


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """stand_in(name, shell): a command of that name, the only one there is."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name, shell):
        (tmp_path / name).write_text(f"#!/bin/sh\n{shell}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    return write


def test_command_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreflightError, match="sbatch: not found: this machine has no Slurm"):
        commands.test_only("#!/bin/sh\n")
    assert not commands.present()


def test_command_that_fails_or_times_out(monkeypatch, stand_in):
    stand_in("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(PreflightError, match=r"^sbatch: invalid partition$"):
        commands.run_slurm("sbatch")
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 0.2)
    stand_in("sbatch", "exec sleep 30")
    with pytest.raises(PreflightError, match="sbatch: no answer from Slurm"):
        commands.run_slurm("sbatch")


def test_controller_that_is_away_is_no_refusal(stand_in):
    stand_in("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(commands.NoAnswerError, match="Unable to contact"):
        commands.job_states(["7"])
    assert commands.ask(["7"]) is None
    stand_in("squeue", "echo 'squeue: error: Invalid user' >&2; exit 1")
    with pytest.raises(PreflightError) as refused:
        commands.job_states(["7"])
    assert not isinstance(refused.value, commands.NoAnswerError)


def test_squeue_then_sacct(stand_in):
    stand_in("squeue", "echo '7|RUNNING|None|node[1-2]|2030-01-01T00:00:00'; echo '9|PENDING|Priority||N/A'")
    stand_in("sacct", "echo '8|CANCELLED by 0|None|node3|2030-01-01T00:00:00'")
    states = commands.job_states(["7", "8"])
    assert (states["7"].state, states["7"].nodes, states["7"].active) == ("RUNNING", "node[1-2]", True)
    assert (states["8"].state, states["8"].active) == ("CANCELLED by 0", False)
    assert [job.id for job in commands.active(states | commands.job_states(["9"]), ["9", "8", "7"])] == [
        "9",
        "7",
    ]


def test_job_that_squeue_forgot_is_over_without_sacct(stand_in):
    stand_in("squeue", "true")
    stand_in("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert commands.job_states(["7"]) == {}


def test_nodes_down_by_sinfo(stand_in):
    stand_in("sinfo", "printf 'a idle\\nb down*\\nc drained\\nd allocated*\\ne mixed\\n'")
    assert commands.nodes_down(["a", "b", "c", "d", "e"]) == ["b", "c", "d"]
    stand_in("sinfo", "exit 1")
    assert commands.nodes_down(["a"]) == []
