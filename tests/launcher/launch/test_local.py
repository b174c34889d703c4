"""Ranks on this machine: started with the right environment, signalled together, and never left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.launch import local
from launcher.launch.processes import FORWARDED
from megatrain.base.errors import PreflightError
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir
from megatrain.run.outcomes import read_outcome

ROOT = Path(__file__).resolve().parents[3]
PRELUDE = """
import json, os, pathlib, signal, subprocess, sys, time
rank, run = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
(run / f"pid-{rank}").write_text(str(os.getpid()))
def wait(): time.sleep(60)
def stop_on(*names):
    def stop(number, frame):
        (run / f"got-{rank}").open("a").write(signal.Signals(number).name + " ")
        sys.exit(75)
    for name in names:
        signal.signal(getattr(signal, name), stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


@pytest.fixture
def rank_does(tmp_path, monkeypatch):
    """rank_does(code): what each rank runs, as the module `worker`."""

    def write(code: str) -> None:
        (tmp_path / "worker.py").write_text(PRELUDE + code, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")

    return write


def ranks(run, count=2, **arguments):
    return local.run_ranks(run, count, module="worker", device="cpu", **arguments)


def launcher(run, count=2):
    """The launcher as a process of its own, to be signalled."""
    code = (
        "import sys; from launcher.launch.local import run_ranks; from megatrain.run.directory import RunDir; "
        f"sys.exit(run_ranks(RunDir({str(run)!r}), {count}, module='worker', device='cpu'))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def pids(run, count=2):
    """The ranks' process ids, once all have started."""
    files = [run.path / f"pid-{rank}" for rank in range(count)]
    wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_each_rank_knows_who_it_is(run, rank_does, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    names += ["OMP_NUM_THREADS", "DS_ACCELERATOR"]
    rank_does(
        f"(run / f'said-{{rank}}').write_text(json.dumps([sys.argv[2:], {{n: os.environ.get(n) for n in {names}}}]))"
    )
    assert ranks(run, 3, resume="must") == 0
    said = [json.loads((run.path / f"said-{rank}").read_text()) for rank in range(3)]
    for rank, (arguments, environment) in enumerate(said):
        assert arguments == ["--resume", "must"]
        assert (environment["RANK"], environment["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert environment["DS_ACCELERATOR"] == "cpu"
        assert environment["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))
    assert len({(environment["MASTER_ADDR"], environment["MASTER_PORT"]) for _, environment in said}) == 1


def test_threads_that_were_set_stay_set(run, rank_does, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    rank_does("(run / f'threads-{rank}').write_text(os.environ['OMP_NUM_THREADS'])")
    ranks(run)
    assert (run.path / "threads-1").read_text() == "7"


def test_rank_zero_prints_and_every_rank_has_a_log(run, rank_does, capfd):
    rank_does("print(f'words of rank {rank} ü'); print(f'complaint of {rank}', file=sys.stderr)")
    assert ranks(run) == 0
    terminal = capfd.readouterr()
    assert terminal.out == "words of rank 0 ü\n"
    assert terminal.err == "complaint of 0\n"
    for rank in (0, 1):
        kept = (run.logs / f"rank-{rank}.log").read_text()
        assert f"words of rank {rank} ü" in kept
        assert f"complaint of {rank}" in kept


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2"])
def test_signal_reaches_every_rank_once_and_exits_75(run, rank_does, name):
    rank_does(f"stop_on('{name}')\n(run / f'ready-{{rank}}').touch()\nwait()")
    process = launcher(run)
    wait_until(lambda: len(list(run.path.glob("ready-*"))) == 2)
    process.send_signal(getattr(signal, name))
    assert process.wait(120) == 75
    assert [(run.path / f"got-{rank}").read_text().split() for rank in (0, 1)] == [[name], [name]]
    assert not any(running(pid) for pid in pids(run))


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR2"])
def test_signal_during_import_waits_until_ranks_can_stop(run, rank_does, name):
    rank_does(f"(run / f'ready-{{rank}}').touch()\ntime.sleep(1)\nstop_on('{name}')\nwait()")
    process = launcher(run)
    wait_until(lambda: len(list(run.path.glob("ready-*"))) == 2)
    process.send_signal(getattr(signal, name))
    assert process.wait(120) == 75


def test_second_sigint_kills_at_once(run, rank_does):
    rank_does("signal.signal(signal.SIGINT, signal.SIG_IGN)\n(run / f'ready-{rank}').touch()\nwait()")
    process = launcher(run)
    wait_until(lambda: len(list(run.path.glob("ready-*"))) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert not any(running(pid) for pid in pids(run))


def test_signals_that_come_while_a_rank_is_waited_for_do_not_wait(run):
    """Popen holds a lock then: a handler that asked for it would wait for ever for the code that it interrupted."""
    group = local.RankGroup(run, 1, local.alone(1), None)
    group.processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)]
    with group.processes[0]._waitpid_lock:
        handler = threading.Thread(target=lambda: [group.forward(signal.SIGINT) for _ in range(2)], daemon=True)
        handler.start()
        handler.join(10)
        assert not handler.is_alive()
    group.kill()
    assert group.processes[0].returncode in (-signal.SIGINT, -signal.SIGKILL, 1)


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(9)", 9), ("os.kill(os.getpid(), signal.SIGKILL)", 1)])
def test_dead_rank_ends_the_others_and_its_log_tail_is_shown(run, rank_does, capfd, monkeypatch, ending, code):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)
    rank_does(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(run / f'ready-{rank}').touch()\n"
        "while len(list(run.glob('ready-*'))) < 3: time.sleep(0.02)\n"
        f"if rank == 2:\n    print('the last words', flush=True)\n    {ending}\nwait()"
    )
    start = time.monotonic()
    assert ranks(run, 3) == code
    assert time.monotonic() - start < 20
    said = capfd.readouterr().err
    assert "error: rank 2 of 3" in said
    assert "the last words" in said
    assert not any(running(pid) for pid in pids(run, 3))


def test_survivors_get_sigterm_before_sigkill(run, rank_does):
    rank_does(
        "stop_on('SIGTERM')\n(run / f'ready-{rank}').touch()\n"
        "while len(list(run.glob('ready-*'))) < 2: time.sleep(0.02)\n"
        "if rank == 1: sys.exit(1)\nwait()"
    )
    assert ranks(run) == 1
    assert (run.path / "got-0").read_text() == "SIGTERM "


def test_a_mistake_that_rank_zero_has_explained_is_not_told_again(run, rank_does, capfd):
    rank_does("if rank == 0:\n    time.sleep(0.5)\n    print('error: no such data', file=sys.stderr)\nsys.exit(4)")
    assert ranks(run) == 4
    assert capfd.readouterr().err == "error: no such data\n"


def test_children_of_a_rank_end_with_it(run, rank_does):
    rank_does("child = subprocess.Popen(['sleep', '60'])\n(run / f'child-{rank}').write_text(str(child.pid))")
    assert ranks(run) == 0
    children = [int((run.path / f"child-{rank}").read_text()) for rank in (0, 1)]
    wait_until(lambda: not any(running(pid) for pid in children))


def test_ranks_end_with_a_killed_launcher(run, rank_does):
    rank_does("wait()")
    process = launcher(run)
    started = pids(run)
    process.kill()
    process.wait()
    wait_until(lambda: not any(running(pid) for pid in started))
    assert len(started) == 2
    assert not any(running(pid) for pid in started)


def test_a_module_in_the_working_directory_is_not_run(run, rank_does, tmp_path, monkeypatch):
    elsewhere = tmp_path / "work"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('hijacked')", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    rank_does("")
    assert ranks(run) == 0


def test_signal_handlers_are_restored(run, rank_does):
    before = [signal.getsignal(number) for number in FORWARDED]
    rank_does("")
    ranks(run)
    assert [signal.getsignal(number) for number in FORWARDED] == before


def test_killed_rank_leaves_an_outcome(run, rank_does, capfd):
    history = [{"job": None, "host": "h", "pid": 1, "ranks": 2, "started": 1.0, "start_step": 0, "token": "t"}]
    run.attempts.write_text(json.dumps(history), encoding="utf-8")
    rank_does("if rank == 5: os.kill(os.getpid(), signal.SIGKILL)\nwait()")
    assert ranks(run, claim=Claim(0, "t"), node_ranks=local.NodeRanks(4, 8, "127.0.0.1", 29_500)) == 1
    outcome = read_outcome(run, 0)
    assert outcome is not None
    assert (outcome.rank, outcome.exit_code, outcome.error) == (5, 1, "the rank was killed by SIGKILL")


def test_a_folder_of_logs_that_cannot_be_written_is_one_message(run, rank_does):
    run.logs.write_text("a file", encoding="utf-8")
    with pytest.raises(PreflightError, match="logs: cannot be made: File exists"):
        ranks(run)
    run.logs.unlink()
    (run.logs / "rank-1.log").mkdir(parents=True)
    rank_does("wait()")
    with pytest.raises(PreflightError, match=r"rank-1\.log: cannot be written: Is a directory"):
        ranks(run)


def test_a_folder_that_is_deleted_meanwhile_costs_no_exit_code(run, rank_does, capfd):
    rank_does("import shutil\nif rank == 1:\n    shutil.rmtree(run)\n    sys.exit(9)\nwait()")
    assert ranks(run) == 9
    assert "error: rank 1 of 2 exited with 9" in capfd.readouterr().err
