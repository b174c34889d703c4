"""Stopping a run, and who has it: only a process that is provably the run's launcher is signalled."""

import os
import subprocess

import pytest

from launcher.runs.owner import busy_with
from launcher.runs.stop import stop_run
from megatrain.base.errors import PreflightError
from megatrain.run.attempts import write_attempts
from tests.launcher.runs.conftest import an_attempt, begin


def test_reused_pid_is_not_the_owner(run):
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        write_attempts(
            run, [an_attempt(job=None, host=os.uname().nodename, pid=sleeping.pid, started=1e10, ended=None)]
        )
        assert busy_with(run) is None
        with pytest.raises(PreflightError, match=r"nothing is stopped: .*it may be any process"):
            stop_run(run, now=False)
        assert sleeping.poll() is None
        assert begin(run).attempt == 1
    finally:
        sleeping.kill()
        sleeping.wait()


def test_stop_reaches_the_launcher_of_this_run(run, launcher):
    assert f"process {launcher.pid} on" in stop_run(run, now=True)
    launcher.wait(120)


def test_stop_has_nothing_to_stop(run):
    with pytest.raises(PreflightError, match="nothing trains it"):
        stop_run(run, now=False)
    write_attempts(run, [an_attempt(job=None, host="elsewhere", ended=None)])
    with pytest.raises(PreflightError, match="gives no sign of life"):
        stop_run(run, now=False)
