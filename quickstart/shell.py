"""Runs `megatrain` as a person would: the command is shown, then what it prints, as it prints it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from typing import NamedTuple


class BrokenPromiseError(Exception):
    """Something that the quickstart promises was not so."""


class Outcome(NamedTuple):
    exit_code: int
    lines: list[str]

    def find(self, pattern: str) -> re.Match[str] | None:
        """The first line's match."""
        return next((match for line in self.lines if (match := re.search(pattern, line))), None)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def megatrain(*arguments: str, exit_code: int = 0, stop_at: str | None = None) -> Outcome:
    """Runs one command to its end.

    Args:
        exit_code: what it has to end with.
        stop_at: a pattern; the first line that it matches has the command sent SIGTERM.

    Raises:
        BrokenPromiseError: it ended with another code, or never printed what `stop_at` waits for.
    """
    shown = shlex.join(["megatrain", *arguments])
    say(f"\n$ {shown}")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    signalled = False
    with subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=os.environ | offline,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            say(f"  {lines[-1]}")
            if stop_at and not signalled and re.search(stop_at, lines[-1]):
                say(f"  $ kill -TERM {process.pid}")
                process.send_signal(signal.SIGTERM)
                signalled = True
        code = process.wait()
    if code != exit_code:
        raise BrokenPromiseError(f"`{shown}` exited with {code}, not {exit_code}")
    if stop_at and not signalled:
        raise BrokenPromiseError(f"`{shown}` never printed {stop_at!r}, where it was to be stopped")
    return Outcome(code, lines)


def expect(promise: str, kept: bool) -> None:
    """Says that a promise was kept.

    Raises:
        BrokenPromiseError: it was not.
    """
    if not kept:
        raise BrokenPromiseError(promise)
    say(f"  ✓ {promise}")


def say(text: str) -> None:
    print(text, flush=True)
