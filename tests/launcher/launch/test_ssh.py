"""Ranks on several hosts by ssh: what each is told, and that none is left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.launch.hosts import Host
from launcher.launch.ssh import run_hosts
from megatrain.run.directory import RunDir
from tests.launcher.launch.test_local import PRELUDE, ROOT, running, wait_until


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDir:
    """A run whose hosts are all this machine: the stand-in for ssh gives the command to a shell, as sshd would."""
    (tmp_path / "run").mkdir()
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nhost=$1; shift\n[ "$host" != gone ] || exit 255\nexec sh -c "$*"\n', encoding="utf-8")
    ssh.chmod(0o755)
    monkeypatch.setenv("MEGATRAIN_SSH", str(ssh))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    return RunDir(tmp_path / "run")


def rank_does(run: RunDir, code: str) -> None:
    (run.path.parent / "worker.py").write_text(PRELUDE + code, encoding="utf-8")


def go(run: RunDir, *names: str) -> int:
    return run_hosts(run, [Host(name, 2) for name in names], 2, module="worker", resume="auto", device="cpu")


def test_every_rank_of_every_host_knows_who_it_is(run):
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    rank_does(run, f"(run / f'said-{{rank}}').write_text(json.dumps([os.environ[n] for n in {names}]))")
    assert go(run, "me@first", "second") == 0
    said = [json.loads((run.path / f"said-{rank}").read_text()) for rank in range(4)]
    assert [words[:4] for words in said] == [[str(rank), str(rank % 2), "4", "2"] for rank in range(4)]
    assert {words[4] for words in said} == {"first"}
    assert len({words[5] for words in said}) == 1
    assert sorted(path.name for path in run.logs.iterdir()) == [f"rank-{rank}.log" for rank in range(4)]


def test_no_secret_leaves_and_no_setting_stands_on_the_command_line(run, monkeypatch):
    ssh = run.path.parent / "ssh"
    ssh.write_text(f'#!/bin/sh\nshift\necho "$*" >> {run.path}/commands\nexec sh -c "$*"\n', encoding="utf-8")
    given = {"NCCL_DEBUG": "VERSION", "HF_HOME": "/h", "HF_TOKEN": "S3CRET1", "TORCH_API_KEY": "S3CRET2"}
    given |= {"HF_ENDPOINT": "https://me:S3CRET3@host"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    clean = "env -u HF_TOKEN -u TORCH_API_KEY -u HF_ENDPOINT -u NCCL_DEBUG -u HF_HOME"
    monkeypatch.setenv("MEGATRAIN_SSH", f"{clean} {ssh}")  # what the other machine has of its own
    rank_does(run, f"(run / f'said-{{rank}}').write_text(json.dumps([os.environ.get(n) for n in {list(given)}]))")
    assert go(run, "first") == 0
    assert json.loads((run.path / "said-0").read_text()) == ["VERSION", "/h", None, None, None]
    commands = (run.path / "commands").read_text()
    assert not any(value in commands for value in given.values())
    assert str(run) not in commands


def test_one_failed_host_ends_the_others(run, capfd):
    code = "(run / f'ready-{rank}').touch()\nwhile len(list(run.glob('ready-*'))) < 4: time.sleep(0.02)\n"
    rank_does(run, f"{code}if rank == 3: sys.exit(9)\nwait()")
    assert go(run, "first", "second") == 9
    assert "error: second: its ranks exited with 9" in capfd.readouterr().err
    pids = [int((run.path / f"pid-{rank}").read_text()) for rank in range(4)]
    wait_until(lambda: not any(running(pid) for pid in pids))


def test_a_host_that_cannot_be_reached(run, capfd):
    rank_does(run, "wait()")
    assert go(run, "first", "gone") == 3
    assert "error: gone: ssh could not reach it" in capfd.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGUSR2", 75), ("SIGKILL", -9)])
def test_a_signal_reaches_all_hosts_and_their_ranks_do_not_outlive_the_launcher(run, name, code):
    rank_does(run, "stop_on('SIGUSR2')\n(run / f'ready-{rank}').touch()\nwait()")
    call = (
        "import sys; from launcher.launch.hosts import Host; from launcher.launch.ssh import run_hosts; "
        "from megatrain.run.directory import RunDir; "
        f"sys.exit(run_hosts(RunDir({str(run)!r}), [Host('a', 2), Host('b', 2)], 2, module='worker', resume='auto', "
        "device='cpu'))"
    )
    process = subprocess.Popen([sys.executable, "-c", call], cwd=ROOT)
    wait_until(lambda: len(list(run.path.glob("ready-*"))) == 4)
    process.send_signal(getattr(signal, name))
    assert process.wait(120) == code
    pids = [int((run.path / f"pid-{rank}").read_text()) for rank in range(4)]
    wait_until(lambda: not any(running(pid) for pid in pids))
    if name == "SIGUSR2":
        assert [(run.path / f"got-{rank}").read_text().split() for rank in range(4)] == [["SIGUSR2"]] * 4
