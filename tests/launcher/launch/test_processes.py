"""Waiting for processes that end together."""

import subprocess
import sys
import time

from launcher.launch.processes import common_code, first_failure, wait_until_ended
from megatrain.base.errors import ExitCode


def start(*commands: str) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen(["sh", "-c", command]) for command in commands]


def test_the_first_failure_is_told_while_others_run():
    processes = start("sleep 60", "exit 0", "exit 9")
    try:
        assert first_failure(processes) == 2
        assert processes[0].poll() is None
    finally:
        processes[0].kill()
        processes[0].wait()


def test_a_signal_is_a_failure():
    assert first_failure([subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])]) == 0


def test_all_ended_well_or_stopped():
    done, stopped = start("exit 0"), start("exit 0", f"exit {ExitCode.STOPPED:d}")
    assert first_failure(done) is None
    assert first_failure(stopped) is None
    assert (common_code(done), common_code(stopped)) == (ExitCode.DONE, ExitCode.STOPPED)


def test_waiting_has_an_end():
    (process,) = start("sleep 60")
    began = time.monotonic()
    wait_until_ended([process], 0.2)
    assert time.monotonic() - began < 5.0
    process.kill()
    wait_until_ended([process], 20.0)
    assert process.poll() is not None
