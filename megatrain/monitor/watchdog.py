"""A rank that hangs must not hold a cluster: every rank's stacks are written down, and the job ends. Free of torch.

    the loop      beat, beat, beat, …                     (nothing any more)
    the thread    polls: is the last beat too long ago?   yes: stacks, outcome, a moment for the other ranks, exit
    faulthandler  a timer in C that the thread keeps winding up: it fires when even the thread cannot run

A rank that hangs in a collective looks like the rank it waits for, so each rank has its own watchdog, and their stacks
together show who is elsewhere. What ranks do unevenly long (build, load, save) they tell each other, by touching
RUN/progress: one that waits for a slower one does not hang.
"""

import faulthandler
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from megatrain.base.errors import ExitCode, MegatrainError
from megatrain.run.claim import own_claim, superseded
from megatrain.run.directory import RunDir
from megatrain.run.heartbeat import write_heartbeat
from megatrain.run.outcomes import record_outcome

_T = TypeVar("_T")

POLL_SECONDS = 5.0
GRACE_SECONDS = 5.0  # between the first rank's stacks and its end, in which the others write theirs


class Watchdog:
    """Watches one rank from its construction to `close`; rank 0's also keeps RUN/heartbeat.json.

    Args:
        hang_timeout_seconds: the longest that a step, an evaluation batch or a checkpoint may take.
    """

    def __init__(self, run: RunDir, *, rank: int, hang_timeout_seconds: float) -> None:
        self._run = run
        self._rank = rank
        self._limit = hang_timeout_seconds
        self._poll = min(POLL_SECONDS, hang_timeout_seconds / 4)
        self._last, self._step, self._activity = time.monotonic(), 0, "starting"
        self._sequence = itertools.count(1)
        self._uneven = False  # whether the last beat is for the ranks that wait for this one, too
        self._progress: int | None = None  # of the others, when last looked at
        self._ended = threading.Event()
        run.logs.mkdir(parents=True, exist_ok=True)
        self._path = run.logs / f"stacks-rank-{rank}.txt"
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the rank
        faulthandler.enable(self._file)  # a segmentation fault shows where, too
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, activity: str, step: int | None = None) -> None:
        """The rank has come to `activity`; after `step` optimizer steps, where that changed."""
        self._last, self._activity = time.monotonic(), activity
        self._step = self._step if step is None else step

    def beat_for_all(self, activity: str) -> None:
        """As `beat`, in what ranks do unevenly long: those that wait for this one need not have a beat of their own."""
        self.beat(activity)
        self._uneven = True

    def watched(self, items: Iterable[_T], activity: str) -> Iterator[_T]:
        """The same items, with a beat at each."""
        for item in items:
            self.beat(activity)
            yield item

    def close(self) -> None:
        """Stop watching. Leaves a last heartbeat, and no file of stacks when there are none."""
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        self._heartbeat()
        with suppress(OSError):
            self._file.close()
            if self._path.stat().st_size == 0:
                self._path.unlink()

    def _watch(self) -> None:
        polled = time.monotonic()
        self._heartbeat()
        while not self._ended.wait(self._poll):
            now = time.monotonic()
            if now - polled > 2 * self._poll:
                self._last += now - polled  # the whole process stood still, as when Slurm suspends a job
            polled = now
            faulthandler.dump_traceback_later(self._limit + GRACE_SECONDS, exit=True, file=self._file)
            if self._uneven:
                self._uneven = False
                with suppress(OSError):
                    self._run.progress.touch()
            if now - self._last < self._limit / 2:
                self._progress = None
            elif self._others_went_on():
                self._last = now
            if now - self._last > self._limit:
                self._bark(now - self._last)
            self._heartbeat()

    def _others_went_on(self) -> bool:
        """Whether another rank has made progress since this silence was last looked at, by the file server's clock."""
        before, self._progress = self._progress, None
        with suppress(OSError):
            self._progress = self._run.progress.stat().st_mtime_ns
        return None not in (before, self._progress) and self._progress != before

    def _bark(self, silent: float) -> None:
        said = (
            f"no progress for {silent:.0f} s (monitor.hang_timeout_seconds is {self._limit:g}); "
            f"last: {self._activity}, after step {self._step:,}"
        )
        with suppress(OSError):  # a full disk must not keep a rank that hangs
            print(f"{time.strftime('%F %T')} rank {self._rank} on {socket.gethostname()}: {said}", file=self._file)
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
        with suppress(OSError):
            print(f"error: rank {self._rank}: {said}; stacks in {self._path}", file=sys.stderr, flush=True)
        record_outcome(self._run, ExitCode.CRASH, f"hung: {said}")
        time.sleep(GRACE_SECONDS)
        os._exit(ExitCode.CRASH)

    def _heartbeat(self) -> None:
        if self._rank != 0:
            return
        if why := superseded(self._run, own_claim()):  # before anything is written over what the other trainer writes
            print(
                f"error: {self._run}: {why}; this trainer stops, and writes nothing more", file=sys.stderr, flush=True
            )
            os._exit(ExitCode.PREFLIGHT)
        with suppress(MegatrainError):  # a full disk is not the watchdog's to report
            write_heartbeat(self._run, step=self._step, activity=self._activity, sequence=next(self._sequence))
