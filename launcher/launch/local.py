"""The ranks of a run on this machine, as plain processes: started together, signalled together, ended together.

On a terminal rank 0 draws its progress bar there; its log is kept all the same.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from launcher.launch.environment import NodeRanks, alone, rank_command, rank_environment
from launcher.launch.output import OutputTee, standard_error, terminal_variables
from launcher.launch.processes import common_code, first_failure, forwarding, held_signals, wait_until_ended
from megatrain.base.errors import ExitCode, PreflightError
from megatrain.base.files import reason
from megatrain.base.terminal import complain, say
from megatrain.run.claim import Claim
from megatrain.run.directory import RunDir
from megatrain.run.outcomes import record_outcome

GRACE_SECONDS = 10.0  # between asking the survivors of a dead rank to end, and ending them
SHOWN_LINES = 20  # of a dead rank's log
# every rank finds the same mistake, and rank 0 says it
_EXPLAINED = (ExitCode.USAGE, ExitCode.PREFLIGHT, ExitCode.DATA, ExitCode.CHECKPOINT)
_HELD = (signal.SIGINT, signal.SIGUSR2)  # of FORWARDED; SIGTERM ends the survivors of a failed rank at once
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_ranks(
    run: RunDir,
    ranks: int,
    *,
    module: str = "megatrain.train",
    resume: str = "auto",
    device: str = "cuda",
    node_ranks: NodeRanks | None = None,
    claim: Claim | None = None,
    started: Callable[["RankGroup"], None] | None = None,
) -> int:
    """Run `python -m MODULE RUN --resume X` on `ranks` processes; return the exit code of the whole.

    Rank 0 writes to this terminal and to RUN/logs/rank-0.log, the others to theirs. SIGINT, SIGTERM and SIGUSR2 are
    passed on once, and the ranks save and stop; a second SIGINT ends them at once. The code is 0 when all ranks ended
    well, 75 when all saved and stopped, and otherwise that of the first rank that failed (1 when a signal killed it).
    Call from the main thread. No rank outlives the call, or this process.

    Args:
        node_ranks: their place among several machines; default: these are all ranks.
        claim: of this attempt, for the ranks to know.
        started: called with the group once the ranks run.
    """
    group = RankGroup(run, ranks, node_ranks or alone(ranks), claim)
    with forwarding(group.forward):
        return group.go(rank_command(sys.executable, module, run, resume), device, started)


class RankGroup:
    def __init__(self, run: RunDir, count: int, node_ranks: NodeRanks, claim: Claim | None) -> None:
        self.count = count
        self.node_ranks = node_ranks
        self.run = run
        self.claim = claim
        self.logs = [run.logs / f"rank-{node_ranks.first_rank + index}.log" for index in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.interrupts = 0

    def go(self, command: list[str], device: str, started: Callable[["RankGroup"], None] | None = None) -> int:
        """Start all, wait for all, and return the exit code of the whole."""
        try:
            self.logs[0].parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PreflightError(f"{self.logs[0].parent}: cannot be made: {reason(error)}") from None
        tee = failed = None
        try:
            with held_signals():  # one that came before a rank is known would not reach it
                for index in range(self.count):
                    environment = rank_environment(index, self.count, self.node_ranks, device, self.claim)
                    self.processes.append(self._start(command, index, environment))
            if self.node_ranks.listener is not None:
                self.node_ranks.listener.close()  # rank 0 has it
            if self.node_ranks.first_rank == 0:
                tee = OutputTee(self.processes[0], self.logs[0])
            if started is not None:
                started(self)
            failed = first_failure(self.processes)
            if failed is not None:
                self._record(failed)
                self._end_survivors(self.processes[failed].returncode)
        finally:
            self.kill()  # and whatever a rank started and left in its group
            if tee is not None:
                tee.end()
        return self._verdict(failed)

    def forward(self, number: int) -> None:
        """For a signal handler: it may come while a process is waited for, with its lock held, so it waits for none."""
        self.interrupts += number == signal.SIGINT
        self._end(signal.SIGKILL if self.interrupts > 1 else number)

    def kill(self) -> None:
        """End every rank at once, and wait until they are gone."""
        self._end(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _start(self, command: list[str], index: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        shown = self.node_ranks.first_rank + index == 0  # on this terminal, too
        listener = self.node_ranks.listener if index == 0 else None
        with _appended(self.logs[index]) as log:
            return subprocess.Popen(
                command,
                env=environment | (terminal_variables() if shown else {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if shown else log,
                stderr=standard_error() if shown else log,
                pass_fds=() if listener is None else (listener.fileno(),),
                start_new_session=True,
                preexec_fn=_prepare_rank,
            )

    def _record(self, failed: int) -> None:
        """Leave the outcome of a rank that could not say how it ended, such as one that was killed."""
        code = self.processes[failed].returncode
        if self.claim is not None and self.interrupts < 2:
            rank, error = self.node_ranks.first_rank + failed, f"the rank {_how(code)}"
            record_outcome(self.run, code if code > 0 else ExitCode.CRASH, error, rank=rank, claim=self.claim)

    def _end_survivors(self, code: int) -> None:
        if code in _EXPLAINED:
            wait_until_ended(self.processes, GRACE_SECONDS)  # rank 0 may not have come to say it yet
        self._end(signal.SIGTERM)
        wait_until_ended(self.processes, GRACE_SECONDS)
        self.kill()

    def _end(self, number: int) -> None:
        """Signal every rank. SIGKILL goes to whole process groups."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)
                elif process.poll() is None:
                    os.kill(process.pid, number)

    def _verdict(self, failed: int | None) -> int:
        codes = [process.returncode for process in self.processes]
        if failed is None:
            return common_code(self.processes)
        if self.interrupts > 1:
            return 128 + signal.SIGINT
        code = codes[failed]
        if code in _EXPLAINED and codes[0] == code:
            return code
        rank = self.node_ranks.first_rank + failed
        with contextlib.suppress(OSError):  # a terminal that has gone, or a log of ours on a full disk
            complain(f"rank {rank} of {self.node_ranks.world_size} {_how(code)}; its output is in {self.logs[failed]}")
            if rank != 0:
                for line in _tail(self.logs[failed]):
                    say(f"  {line}", file=sys.stderr, flush=True)
        return code if code > 0 else ExitCode.CRASH


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _prepare_rank() -> None:
    """In the child, before exec. The kernel kills it when the launcher dies by a signal that cannot be caught. What
    asks it to save and stop waits until it can (train/signals.py): while it imports torch, that would just end it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _HELD)


def _appended(log: Path) -> BinaryIO:
    try:
        return open(log, "ab")
    except OSError as error:
        raise PreflightError(f"{log}: cannot be written: {reason(error)}") from None


def _tail(log: Path) -> list[str]:
    size = log.stat().st_size
    with open(log, "rb") as file:
        file.seek(max(0, size - 16384))
        return file.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
