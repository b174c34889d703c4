"""A run, a launcher that has it, and attempts of its history."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.planning.plan import make_plan
from launcher.runs.claim import claimed
from launcher.runs.prepare import prepare_run
from launcher.slurm import commands
from megatrain.run import heartbeat
from megatrain.run.attempts import Attempt
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = (
    "import signal, sys\nfrom launcher.runs.claim import attempted\nfrom megatrain.run.directory import RunDir\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored by what a script started with `&`
    "def go(claim):\n    print('started', flush=True)\n    sys.stdin.read()\n    return 0\n"
    "attempted(RunDir(sys.argv[1]), 2, ['here'], go)"
)


def an_attempt(start: int = 0, end: int = 0, **fields: Any) -> Attempt:
    given = {"job": "7", "host": "n1", "pid": 1, "ranks": 2, "started": 10.0, "ended": 20.0}
    return Attempt(**given | {"start_step": start, "end_step": end} | fields)


@pytest.fixture
def run(tiny: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(commands, "ask", lambda jobs: {})
    monkeypatch.setattr(heartbeat, "WATCH_SECONDS", 0.1)
    return prepare_run(tiny(), make_plan(tiny()).chosen)


@pytest.fixture
def launcher(run: RunDir) -> Iterator[subprocess.Popen[str]]:
    """A launcher that has the run, until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path.absolute())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.communicate()


def begin(run: RunDir, job: str | None = None, **given: Any) -> Claim:
    with claimed(run, ranks=2, nodes=["n1", "n3"], job=job, **given) as claim:
        return claim
