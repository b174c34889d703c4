"""One line that tells how far a long job is: a live bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SECONDS_BETWEEN_LINES = 5.0


class ProgressLine:
    """Documents, tokens or bytes per second, and the time left, judged by the bytes of input read so far.

    Args:
        verb: what is being done.
        total_bytes: of all inputs.
        stream: where to write; None writes nothing.
    """

    def __init__(self, verb: str, total_bytes: int, stream: TextIO | None) -> None:
        self._verb = verb
        self._total = max(1, total_bytes)
        self._stream = stream
        self._start = self._last_line = time.monotonic()
        self._first_byte: int | None = None
        self.documents = 0
        self.tokens = 0
        self._bytes = 0
        self._bar: Progress | None = None
        if stream is not None and stream.isatty():
            columns = TextColumn(verb), BarColumn(), TextColumn("{task.description}")
            self._bar = Progress(*columns, console=Console(file=stream))
            self._task = self._bar.add_task("", total=self._total)

    def __enter__(self) -> "ProgressLine":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._stream is not None and kind is None:
            print(self.text(), file=self._stream)

    def update(self, *, bytes_read: int, documents: int = 0, tokens: int = 0) -> None:
        """Count `documents` and `tokens` more; `bytes_read` is of all inputs so far."""
        if self._first_byte is None:
            # what an earlier run has done says nothing of this one's speed
            self._first_byte = bytes_read if documents else 0
        self.documents += documents
        self.tokens += tokens
        self._bytes = bytes_read
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=bytes_read, description=self.text())
        elif self._stream is not None and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            print(self.text(), file=self._stream, flush=True)
            self._last_line = now

    def text(self) -> str:
        elapsed = max(1e-9, time.monotonic() - self._start)
        done = self._bytes - (self._first_byte or 0)
        left = (self._total - self._bytes) * elapsed / done if done > 0 else None
        eta = "" if left is None or left <= 0 else f" · eta {_duration(left)}"
        share = (
            f" · {min(1.0, self._bytes / self._total):.0%}" if self._total > 1 else ""
        )  # of the Hub, sizes are unknown
        return f"{self._verb}: {self._counts(elapsed, done)}{share}{eta}"

    def _counts(self, elapsed: float, done: int) -> str:
        if self.tokens:
            return f"{self.documents:,} documents · {self.tokens:,} tokens · {_rate(self.tokens / elapsed)} tokens/s"
        return f"{self.documents:,} documents" if self.documents or not done else f"{_rate(done / elapsed)}B/s"


def _rate(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
