"""What rank 0 prints: on to this terminal, and into its log.

On a terminal rank 0 gets a pseudo-terminal, so that it draws its progress bar; off it, pipes. The log gets whole lines,
without the bar and without the sequences that move the cursor.
"""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from megatrain.base.files import reason

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERASED = re.compile(r"^.*(?:\x1b\[2K|\r(?=.))", re.DOTALL)  # what a later part of the line was written over
_BAR = "━"  # rich draws its bar of these
_JOIN_SECONDS = 5.0


class OutputTee:
    """Made before rank 0, given its `ends`, begun with it, ended after it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._warned = False
        self._copiers: list[threading.Thread] = []
        self._theirs: list[int] = []
        self._ours: list[tuple[int, TextIO]] = []
        self._window: Any = None
        out = self._terminal() if _is_terminal(sys.stdout) else self._pipe(sys.stdout)
        err = out if _is_terminal(sys.stdout) and _is_terminal(sys.stderr) else self._pipe(sys.stderr)
        self._ends = (out, err)

    def ends(self) -> tuple[int, int]:
        """File descriptors for rank 0's standard output and error."""
        return self._ends

    def begin(self, process: subprocess.Popen[bytes]) -> None:
        """Rank 0 has been started: copy what it prints until it, and what it started, have closed their ends."""
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs.clear()
        for descriptor, target in self._ours:
            thread = threading.Thread(target=self._copy, args=(descriptor, target), daemon=True)
            self._copiers.append(thread)
            thread.start()

    def end(self) -> None:
        for copier in self._copiers:
            copier.join(timeout=_JOIN_SECONDS)
        for descriptor in self._theirs:  # rank 0 never came to be
            os.close(descriptor)
        for descriptor, _ in self._ours:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if self._window is not None:
            signal.signal(signal.SIGWINCH, self._window)

    def _pipe(self, target: TextIO) -> int:
        ours, theirs = os.pipe()
        self._theirs.append(theirs)
        self._ours.append((ours, target))
        return theirs

    def _terminal(self) -> int:
        ours, theirs = pty.openpty()
        settings = termios.tcgetattr(theirs)
        settings[1] &= ~termios.OPOST  # bytes pass as they are: the real terminal makes lines of them
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        self._theirs.append(theirs)
        self._ours.append((ours, sys.stdout))

        def resize(number: int, frame: FrameType | None) -> None:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(ours, termios.TIOCSWINSZ, size)

        resize(signal.SIGWINCH, None)
        if threading.current_thread() is threading.main_thread():
            self._window = signal.signal(signal.SIGWINCH, resize)
        return theirs

    def _copy(self, source: int, target: TextIO) -> None:
        """Drain one end of rank 0's, whatever becomes of the terminal and the log: else the rank would wait for us."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk can end inside a character
        rest = ""
        while chunk := _read(source):
            text = decoder.decode(chunk)
            with contextlib.suppress(OSError, ValueError):  # a terminal that has gone does not stop a run
                target.write(text)
                target.flush()
            *lines, rest = (rest + text).split("\n")
            self._keep(lines)
        self._keep([rest] if rest else [])

    def _keep(self, lines: list[str]) -> None:
        kept = "".join(f"{line}\n" for line in map(plain, lines) if line is not None)
        with self._lock:
            try:
                with open(self._log, "ab", buffering=0) as log:  # opened each time: a disk that was full may have room
                    log.write(kept.encode("utf-8", "replace"))
            except OSError as error:
                self._warn_once(f"{self._log}: cannot be written: {reason(error)}; the run continues without it")

    def _warn_once(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            with contextlib.suppress(OSError, ValueError):
                print(f"warning: {text}", file=sys.stderr, flush=True)


def plain(line: str) -> str | None:
    """A line as a log keeps it; None when nothing but the bar was on it."""
    shown = _CONTROL.sub("", _ERASED.sub("", line.rstrip("\r"))).rstrip("\r")
    return None if _BAR in shown or (not shown and "\x1b" in line) else shown


def _read(source: int) -> bytes:
    try:
        return os.read(source, 65536)
    except OSError:  # a pseudo-terminal whose other end is closed
        return b""


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
