"""Processes that end together: wait for the first failure, wait for all, pass signals on."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from megatrain.base.errors import ExitCode

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_POLL_SECONDS = 0.05

Processes = Sequence[subprocess.Popen[bytes]]


def first_failure(processes: Processes) -> int | None:
    """Wait until all have ended well (None), or one has failed: its index."""
    while True:
        codes = [process.poll() for process in processes]
        for index, code in enumerate(codes):
            if code not in (None, ExitCode.DONE, ExitCode.STOPPED):
                return index
        if None not in codes:
            return None
        time.sleep(_POLL_SECONDS)


def wait_until_ended(processes: Processes, seconds: float) -> None:
    """Return when all have ended, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)


def common_code(processes: Processes) -> int:
    """The exit code of processes that all ended well."""
    return ExitCode.STOPPED if ExitCode.STOPPED in [process.returncode for process in processes] else ExitCode.DONE


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """FORWARDED signals that come within the block are handled at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def forwarding(forward: Callable[[int], None]) -> Iterator[None]:
    """Pass FORWARDED on to `forward` for as long as the block runs."""
    before = {number: signal.signal(number, lambda n, _: forward(n)) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
