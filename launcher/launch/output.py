"""What rank 0 prints: on to this terminal, and into its log.

Rank 0 writes to pipes. Where they end on a terminal it is told so by variables that rich reads, and draws its progress
bar; the log gets whole lines, without the bar and without the sequences that move the cursor.
"""

import codecs
import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TextIO

from megatrain.base.files import reason

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERASED = re.compile(r"^.*(?:\x1b\[2K|\r(?=.))", re.DOTALL)  # what a later part of the line was written over
_BAR = "━"  # rich draws its bar of these
_JOIN_SECONDS = 5.0


def terminal_variables() -> dict[str, str]:
    """For rank 0's environment: that its output ends on a terminal, and the size of that; none where it does not."""
    if not _is_terminal(sys.stdout):
        return {}
    size = os.get_terminal_size(sys.stdout.fileno())
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}


def standard_error() -> int:
    """Where rank 0's goes, as Popen has it: the same pipe as its output when both end on this terminal, in order."""
    return subprocess.STDOUT if _is_terminal(sys.stdout) and _is_terminal(sys.stderr) else subprocess.PIPE


class OutputTee:
    """Copies what a process prints until it, and what it started, have closed their ends of the pipes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._warned = False
        pipes = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        self._copiers = [
            threading.Thread(target=self._copy, args=(pipe, target), daemon=True)
            for pipe, target in pipes
            if pipe is not None
        ]
        for copier in self._copiers:
            copier.start()

    def end(self) -> None:
        for copier in self._copiers:
            copier.join(timeout=_JOIN_SECONDS)

    def _copy(self, source: IO[bytes], target: TextIO) -> None:
        """Drain a pipe, whatever becomes of the terminal and the log: else the rank would wait for us."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk can end inside a character
        rest = ""
        while chunk := os.read(source.fileno(), 65536):
            text = decoder.decode(chunk)
            with contextlib.suppress(OSError, ValueError):  # a terminal that has gone does not stop a run
                target.write(text)
                target.flush()
            *lines, rest = (rest + text).split("\n")
            self._keep(lines)
        self._keep([rest] if rest else [])
        source.close()

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


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False
