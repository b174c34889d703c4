"""One at a time; given back by the kernel, and never taken from a process that lives."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megatrain.base.errors import PreflightError
from megatrain.run import lock
from megatrain.run.lock import LockHeldError, launcher_lock, locked

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys\nfrom megatrain.run.lock import locked\nfrom megatrain.run.directory import RunDir\n"
    "with locked(RunDir(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
)


@pytest.fixture
def holder(run):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_lock_is_held_by_one_at_a_time(run):
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


def test_lock_is_not_stale_while_its_holder_lives(run, holder, monkeypatch):
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)
    os.utime(run.path / "attempts.lock", (1, 1))
    with pytest.raises(LockHeldError, match=r"attempts\.lock: is held by another process"), locked(run):
        pass


def test_lock_of_a_killed_holder_is_released(run, holder):
    holder.kill()
    holder.wait()
    with locked(run):
        assert (run.path / "attempts.lock").is_file()


def test_lock_folder_of_an_earlier_version_is_ignored(run):
    (run.path / ".attempts.lock").mkdir()
    with locked(run), launcher_lock(run):
        assert (run.path / "attempts.lock").is_file()


@pytest.mark.parametrize("make", ["missing", "folder", "link"])
def test_lock_error_is_one_message(run, make):
    file = run.path / "attempts.lock"
    if make == "missing":
        run.path.rmdir()
    elif make == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/null")
    with pytest.raises(PreflightError, match=r"attempts\.lock: cannot be locked: "), locked(run):
        pass
