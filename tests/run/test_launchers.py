"""Which process has a run: told without a clock, and signalled only when it is certain."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.run.attempts import Attempt
from megatrain.run.directory import RunDir
from megatrain.run.launchers import identity, is_elsewhere, lives, not_to_be_signalled
from tests.run.conftest import an_attempt

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = (
    "import sys\nfrom megatrain.run.lock import launcher_lock\nfrom megatrain.run.directory import RunDir\n"
    "with launcher_lock(RunDir(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
)


@pytest.fixture
def launcher(tmp_path):
    """A process that has the run in the folder `mine`."""
    (tmp_path / "mine").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path / "mine")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def attempt_of(pid: int, path: Path, **changes: object) -> Attempt:
    boot, namespace, ticks = identity(pid)
    known = {"boot": boot, "pid_namespace": namespace, "start_ticks": ticks, "folder": str(path)}
    given = {"host": socket.gethostname(), "pid": pid, "ended": None}
    return an_attempt(**given | known | changes)


def test_the_launcher_of_this_run_lives_and_may_be_signalled(tmp_path, launcher):
    run = RunDir(tmp_path / "mine")
    attempt = attempt_of(launcher.pid, run.path, started=1e10)  # a clock that was wrong by centuries
    assert not is_elsewhere(attempt)
    assert lives(run, attempt)
    assert not_to_be_signalled(run, attempt) is None
    launcher.kill()
    launcher.wait()
    assert not lives(run, attempt)
    assert "is not the one that was started then" in not_to_be_signalled(run, attempt)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"start_ticks": 1}, "is not the one that was started then"),
        ({"start_ticks": None}, "recorded by an earlier version"),
        ({"boot": "another"}, "was started on"),
        ({"pid_namespace": "pid:[1]"}, "was started on"),
        ({"folder": "/"}, "started for /, of which this folder is a copy or a new name"),
        ({"folder": None}, "a copy or a new name"),
    ],
)
def test_anything_that_differs_is_not_signalled(tmp_path, launcher, changes, why):
    attempt = attempt_of(launcher.pid, tmp_path / "mine", **changes)
    assert why in not_to_be_signalled(RunDir(tmp_path / "mine"), attempt)


def test_a_copied_or_renamed_folder_does_not_reach_the_process_of_the_first(tmp_path, launcher):
    run, copy, renamed = (RunDir(tmp_path / name) for name in ("mine", "copy", "renamed"))
    attempt = attempt_of(launcher.pid, run.path)
    shutil.copytree(run.path, copy.path)
    assert "a copy or a new name" in not_to_be_signalled(copy, attempt)
    assert not lives(copy, attempt), "nobody trains the copy"
    run.path.rename(renamed.path)
    assert "a copy or a new name" in not_to_be_signalled(renamed, attempt)
    assert lives(renamed, attempt), "it still writes there"


def test_a_process_that_a_file_only_names_is_left_alone(tmp_path, launcher):
    """As attempts.json of a stranger's folder could, with all that /proc tells of a process of ours."""
    run = RunDir(tmp_path / "theirs")
    run.path.mkdir()
    attempt = attempt_of(launcher.pid, run.path)
    assert "is no launcher of this run" in not_to_be_signalled(run, attempt)
    os.link(tmp_path / "mine/launcher.lock", run.path / "launcher.lock")
    assert "is no launcher of this run" in not_to_be_signalled(run, attempt), "by a second name of its file"
    assert not lives(run, attempt)


def test_of_an_earlier_versions_record_the_name_of_the_process_decides(tmp_path, launcher):
    run, old = RunDir(tmp_path / "mine"), {"boot": None, "pid_namespace": None, "start_ticks": None, "folder": None}
    assert lives(run, attempt_of(launcher.pid, run.path, **old)), "its command line names megatrain"
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        assert not lives(run, attempt_of(sleeping.pid, run.path, **old))
        assert not_to_be_signalled(run, attempt_of(sleeping.pid, run.path, **old))
    finally:
        sleeping.kill()
        sleeping.wait()


def test_another_machine_of_the_same_name_is_elsewhere(tmp_path):
    assert is_elsewhere(attempt_of(os.getpid(), tmp_path, boot="another"))
    assert not is_elsewhere(attempt_of(os.getpid(), tmp_path, host="renamed since"))
    assert json.loads(json.dumps(attempt_of(os.getpid(), tmp_path).fields()))["start_ticks"] > 0
