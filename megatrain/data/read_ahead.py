"""A thread that reads steps before they are asked for.

One thread, no worker processes: a read is a `pread`, and handing tensors from process to process costs more than that.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_POLL_SECONDS = 0.1  # how soon the thread notices that it should stop

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `read(position)`, `read(position + stride)`, … in order, at most `depth` results ahead."""

    def __init__(self, read: Callable[[int], Item], position: int, stride: int, depth: int) -> None:
        self._read = read
        self._stride = stride
        self._queue: queue.Queue[tuple[Item | None, Exception | None]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(position,), name="data-read-ahead", daemon=True)
        self._thread.start()

    def next(self) -> Item:
        """The next result. Whatever `read` raised is raised here; nothing comes after it."""
        item, error = self._queue.get()
        if error is not None:
            raise error
        assert item is not None
        return item

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self, position: int) -> None:
        while not self._stopped.is_set():
            try:
                item = self._read(position)
            except Exception as error:  # handed to whoever waits for the result
                self._put((None, error))
                return
            self._put((item, None))
            position += self._stride

    def _put(self, result: tuple[Item | None, Exception | None]) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(result, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return
