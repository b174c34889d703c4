"""A real Slurm cluster of three nodes on this machine, for as long as the tests of this folder run."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.planning.plan import make_plan, resolve
from launcher.runs.prepare import prepare_run
from launcher.slurm import job
from launcher.slurm.script import render
from megatrain.config.file import parse_config
from megatrain.run.directory import RunDir

BUSY = 5  # how much longer things may take on a slow machine, and beside tests that take every core
BED = Path(__file__).parent / "bed" / "cluster.sh"
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name, path=_SBIN) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(1200))


class Cluster:
    """Clients of the cluster, and what its operator can do to it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def operate(self, *arguments: str) -> None:
        subprocess.run([BED, *arguments], env=self.environment, check=True, timeout=60)

    def processes(self) -> list[str]:
        """The command lines of everything that a job of this cluster has running."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                if ours in variables and any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables):
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
        return [line for line in found if line]

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        command = ["scontrol", "--oneliner", "show", "job", job]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def run_seconds(self, job: str) -> int:
        hours, minutes, seconds = map(int, self.job(job)["RunTime"].split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def wait_for(self, job: str, *states: str, seconds: float = 90) -> dict[str, str]:
        """The job's fields, once it is in one of these states."""
        return wait_until(lambda: (fields := self.job(job))["JobState"] in states and fields, seconds)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> object:
    """The first true answer of `condition`, which comes within so many seconds where nothing else runs."""
    deadline = time.monotonic() + BUSY * seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if MISSING:
        reason = f"no Slurm here ({', '.join(MISSING)} missing): apt-get install slurm-wlm munge"
        if os.environ.get("MEGATRAIN_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    bed = tmp_path_factory.mktemp("slurm") / "bed"
    port = 20_000 + os.getpid() % 1_000 * 10  # so that two test runs do not meet
    environment = {**os.environ, "BED": str(bed), "NODES": "3", "PORT": str(port), "PREFIX": f"bed{port}n"}
    # in a session of its own, and at the end of a pipe: it stops the cluster however this process ends
    guard = subprocess.Popen([BED, "guard"], env=environment, stdin=subprocess.PIPE, start_new_session=True)
    subprocess.run([BED, "start"], env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(bed / "etc" / "slurm.conf")
    try:
        yield Cluster({**environment, "SLURM_CONF": os.environ["SLURM_CONF"]})
    finally:
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        guard.communicate(timeout=120)


CONFIG = """
run: {name: job}
model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, intermediate_size: 128, vocab_size: 512}
data: {sequence_length: 128, train: [{path: data/train}]}
training: {steps: 1, global_batch_size: 8}
monitor: {hang_timeout_seconds: 60}
cluster: {hardware: cpu, nodes: 2, gpus_per_node: 2}
slurm: {time: "5", cpus_per_task: 2, max_restarts_without_progress: 1}
"""

# Stands in for the trainer: it trains nothing, saves empty checkpoints, and ends as told. What it says of its end, and
# who watches it, are the real thing.
STAND_IN = """
import json, os, pathlib, signal, sys, time
from megatrain.monitor.watchdog import Watchdog
from megatrain.run.claim import own_claim
from megatrain.run.outcomes import record_outcome
from megatrain.run.directory import RunDir

run, rank = RunDir(sys.argv[1]), int(os.environ["SLURM_PROCID"])
start = own_claim().attempt
names = ["SLURM_NTASKS", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "SLURMD_NODENAME"]
names += ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"]

def save(step):
    if rank == 0:
        run.step(step).mkdir(parents=True)
        state = {"step": step, "loader": {"position": 8 * step}}
        (run.step(step) / "state.json").write_text(json.dumps(state))
        (run.step(step) / "MANIFEST.json").touch()

def leave(code, error):
    record_outcome(run, code, error)
    os._exit(code)

def stop(number, frame):
    for other in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(other, signal.SIG_IGN)  # the first one counts
    save(run.steps()[-1] + 1 if run.steps() else 1)
    time.sleep(0.3 * rank)  # the ranks do not end together
    leave(75, signal.Signals(number).name)

def hang():
    time.sleep(600)

def wait_in_a_collective():  # for a rank that is dead: no signal makes it save
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCONT, signal.SIG_IGN)
    hang()

def hang_deaf():  # as a rank that never comes to the end of its step: signals are noted, and change nothing
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, lambda *_: None)
    while True:
        hang()

for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
    signal.signal(number, stop)
(run.path / f"rank-{rank}.{start}").write_text(" ".join([*sys.argv[2:], *(os.environ[n] for n in names)]))
"""


@dataclass(frozen=True)
class Submitted:
    """A job of stand-ins."""

    id: str
    run: RunDir
    script: str

    @property
    def log(self) -> str:
        path = self.run.logs / f"slurm-{self.id}.log"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def started(self, attempt: int = 0, *, ranks: int = 4, seconds: float = 60) -> None:
        """Wait until all ranks of an attempt run."""
        wait_until(lambda: len(list(self.run.path.glob(f"rank-*.{attempt}"))) == ranks, seconds)


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Submitted]]:
    """submit(code, overrides…): a job whose ranks run STAND_IN + code. None of its processes may outlive the test."""
    monkeypatch.chdir(tmp_path)

    def make(code: str, *overrides: str, profile: str | None = None, chain: int = 1) -> Submitted:
        (tmp_path / "stand_in.py").write_text(STAND_IN + code, encoding="utf-8")
        config = parse_config(CONFIG, overrides=overrides)
        chosen = make_plan(config).chosen
        run = prepare_run(config, chosen)
        script = render(resolve(config, chosen), run, chosen, profile=profile)
        script = script.replace("-m megatrain.train", str(tmp_path / "stand_in.py"))
        first, *_ = job.submit(script, run, chain=chain)
        return Submitted(first, run, script)

    yield make
    wait_until(lambda: not cluster.processes(), 30)
