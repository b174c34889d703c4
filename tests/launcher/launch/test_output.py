"""What rank 0 prints reaches the terminal as it is, and the log as plain lines."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.launch.output import OutputTee, plain

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("step 1/6  loss 6.2", "step 1/6  loss 6.2"),
        ("", ""),
        ("\r\x1b[2Kstep 1/6\r", "step 1/6"),
        ("step 2/6 ━━━━━ loss 6\r\x1b[2Kstep 2/6  loss 6.1", "step 2/6  loss 6.1"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("step 6/6 ━━━━━━━━ 0:00:02", None),
        ("\x1b[?25h", None),
    ],
)
def test_log_keeps_plain_lines_without_the_progress_bar(line, kept):
    assert plain(line) == kept


def test_rank_zero_has_a_terminal_and_a_plain_log(tmp_path):
    (tmp_path / "worker.py").write_text(
        "import os, sys, time\n"
        "from rich.console import Console\nfrom rich.progress import Progress\n"
        "print('a terminal', Console().is_terminal, Console().width)\n"
        "with Progress(console=Console(), transient=True) as bar:\n"
        "    task = bar.add_task('training', total=2)\n"
        "    for step in (1, 2):\n"
        "        bar.update(task, completed=step); bar.refresh(); bar.console.print(f'line {step}')\n"
        "print('complaint', file=sys.stderr)\n",
        encoding="utf-8",
    )
    code = (
        "import sys; from launcher.launch.local import run_ranks; from megatrain.run.directory import RunDir; "
        f"sys.exit(run_ranks(RunDir({str(tmp_path)!r}), 1, module='worker', device='cpu'))"
    )
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "97"], stdin=theirs, check=True)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    assert process.wait(30) == 0
    assert b"a terminal True 97" in shown
    assert "━".encode() in shown, "the bar lives"
    assert b"complaint" in shown
    log = (tmp_path / "logs/rank-0.log").read_text(encoding="utf-8").splitlines()
    assert [line for line in log if line] == ["a terminal True 97", "line 1", "line 2", "complaint"]


@pytest.mark.parametrize("log", ["/dev/full", "/nowhere/rank-0.log"])
def test_unwritable_log_costs_neither_output_nor_rank(log, capfd):
    """More than a pipe holds: a rank whose output nobody reads would wait for ever."""
    code = "for number in range(20_000): print('a line of the run', number)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    tee = OutputTee(process, Path(log))
    assert process.wait(60) == 0
    tee.end()
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "a line of the run 19999"
    (warning,) = said.err.splitlines()
    assert warning.startswith(f"warning: {log}: cannot be written: No s")
    assert warning.endswith("; the run continues without it")


def test_log_continues_when_a_full_disk_has_room_again(tmp_path, capfd):
    log = tmp_path / "logs/rank-0.log"
    process = subprocess.Popen(["sh", "-c", "echo first; read line; echo second"], stdin=-1, stdout=-1, stderr=-1)
    tee = OutputTee(process, log)
    while "warning" not in capfd.readouterr().err:
        assert process.poll() is None
    log.parent.mkdir()
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 0
    tee.end()
    assert log.read_text() == "second\n"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
