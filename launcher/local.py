"""The ranks of a run on this machine, as plain processes: started together, signalled together, ended together."""

import codecs
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from megatrain.errors import ExitCode
from megatrain.run_dir import RunDir

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
GRACE_SECONDS = 10.0  # between asking the survivors of a dead rank to end, and ending them
SHOWN_LINES = 20  # of a dead rank's log
_POLL_SECONDS = 0.05
# every rank finds the same mistake, and rank 0 says it
_EXPLAINED = (ExitCode.USAGE, ExitCode.PREFLIGHT, ExitCode.DATA, ExitCode.CHECKPOINT)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_ranks(
    run: RunDir, ranks: int, *, module: str = "megatrain.train", resume: str = "auto", device: str = "cuda"
) -> int:
    """Run `python -m MODULE RUN --resume X` on `ranks` processes; return the exit code of the whole.

    Rank 0 writes to this terminal and to RUN/logs/rank-0.log, the others to theirs. SIGINT, SIGTERM and SIGUSR2 are
    passed on once, and the ranks save and stop; a second SIGINT ends them at once. The code is 0 when all ranks ended
    well, 75 when all saved and stopped, and otherwise that of the first rank that failed (1 when a signal killed it).
    Call from the main thread. No rank outlives the call, or this process.
    """
    group = _Ranks(run, ranks)
    with _forwarding(group.forward):
        return group.go([sys.executable, "-m", module, str(run), "--resume", resume], device)


class _Ranks:
    def __init__(self, run: RunDir, count: int) -> None:
        self.count = count
        self.logs = [run.logs / f"rank-{rank}.log" for rank in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.interrupts = 0

    def go(self, command: list[str], device: str) -> int:
        """Start all, wait for all, and return the exit code of the whole."""
        self.logs[0].parent.mkdir(parents=True, exist_ok=True)
        port, copiers = _free_port(), []
        try:
            for rank in range(self.count):
                self.processes.append(self._start(command, rank, _environment(rank, self.count, port, device)))
            copiers = self._copy_rank_zero()
            failed = self._first_failure()
            if failed is not None:
                self._end_survivors(self.processes[failed].returncode)
        finally:
            self._end(signal.SIGKILL)  # and whatever a rank started and left in its group
            for copier in copiers:
                copier.join(timeout=5)
        return self._verdict(failed)

    def forward(self, number: int) -> None:
        self.interrupts += number == signal.SIGINT
        self._end(signal.SIGKILL if self.interrupts > 1 else number)

    def _start(self, command: list[str], rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self.logs[rank], "ab") as log:
            piped = rank == 0
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=subprocess.PIPE if piped else log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _copy_rank_zero(self) -> list[threading.Thread]:
        """Threads that pass rank 0's output on to the terminal and to its log."""
        first, copiers = self.processes[0], []
        for source, terminal in ((first.stdout, sys.stdout), (first.stderr, sys.stderr)):
            copiers.append(threading.Thread(target=_copy, args=(source, terminal, self.logs[0]), daemon=True))
            copiers[-1].start()
        return copiers

    def _first_failure(self) -> int | None:
        """Wait until all ranks ended (None), or the first one failed."""
        while True:
            codes = [process.poll() for process in self.processes]
            for rank, code in enumerate(codes):
                if code not in (None, ExitCode.DONE, ExitCode.STOPPED):
                    return rank
            if None not in codes:
                return None
            time.sleep(_POLL_SECONDS)

    def _end_survivors(self, code: int) -> None:
        if code in _EXPLAINED:
            self._wait_until_all_ended(GRACE_SECONDS)  # rank 0 may not have come to say it yet
        self._end(signal.SIGTERM)
        self._wait_until_all_ended(GRACE_SECONDS)
        self._end(signal.SIGKILL)

    def _wait_until_all_ended(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(_POLL_SECONDS)

    def _end(self, number: int) -> None:
        """Signal every rank. SIGKILL goes to whole process groups, and waits until they are gone."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)
                elif process.poll() is None:
                    os.kill(process.pid, number)
        if number == signal.SIGKILL:
            for process in self.processes:
                process.wait()

    def _verdict(self, failed: int | None) -> int:
        codes = [process.returncode for process in self.processes]
        if failed is None:
            return ExitCode.STOPPED if ExitCode.STOPPED in codes else ExitCode.DONE
        if self.interrupts > 1:
            return 128 + signal.SIGINT
        code = codes[failed]
        if code in _EXPLAINED and codes[0] == code:
            return code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        print(f"error: rank {failed} of {self.count} {how}; its output is in {self.logs[failed]}", file=sys.stderr)
        if failed != 0:
            for line in _tail(self.logs[failed]):
                print(f"  {line}", file=sys.stderr)
        return code if code > 0 else ExitCode.CRASH


@contextlib.contextmanager
def _forwarding(forward: Callable[[int], None]) -> Iterator[None]:
    before = {number: signal.signal(number, lambda n, _: forward(n)) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(rank: int, count: int, port: int, device: str) -> dict[str, str]:
    """What torch.distributed's env:// rendezvous reads, and threads that share the cores."""
    cores = len(os.sched_getaffinity(0))
    settings = {"OMP_NUM_THREADS": str(max(1, cores // count)), "PYTHONUNBUFFERED": "1", **os.environ}
    settings |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if device == "cpu":
        settings["DS_ACCELERATOR"] = "cpu"
    return settings


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """In the child, before exec: the kernel kills it when the launcher dies by a signal that cannot be caught."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _copy(source: IO[bytes], terminal: IO[str], log: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk can end inside a character
    with open(log, "ab", buffering=0) as file:
        while chunk := os.read(source.fileno(), 65536):
            file.write(chunk)
            with contextlib.suppress(OSError, ValueError):  # a terminal that has gone does not stop a run
                terminal.write(decoder.decode(chunk))
                terminal.flush()


def _tail(log: Path) -> list[str]:
    size = log.stat().st_size
    with open(log, "rb") as file:
        file.seek(max(0, size - 16384))
        return file.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
