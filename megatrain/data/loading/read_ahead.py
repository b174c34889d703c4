"""Threads that read steps before they are asked for, and hand them over in order.

Threads, no worker processes: a read is a `pread`, and handing tensors from process to process costs more than that.
"""

import atexit
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_JOIN_SECONDS = 10.0  # a read that hangs longer than that is left to its daemon thread

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `read(position)`, `read(next_position(position))`, … in threads, at most `depth` results ahead of `next`.

    However many threads there are, and whichever is done first, results come in the order of the positions.
    """

    def __init__(
        self,
        read: Callable[[int], Item],
        position: int,
        next_position: Callable[[int], int],
        depth: int,
        *,
        threads: int = 1,
    ) -> None:
        self._read, self._next_position = read, next_position
        self._position, self._depth = position, depth  # of the next read to begin
        self._begun = self._handed = 0  # numbers of the next read to begin, and of the next result to hand over
        self._results: dict[int, tuple[Item | None, Exception | None]] = {}
        self._stopped = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"data-read-ahead-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # a thread that is inside torch when the interpreter ends would abort the process

    def next(self) -> Item:
        """The next result. Whatever `read` raised is raised here; nothing comes after it."""
        with self._changed:
            self._changed.wait_for(lambda: self._handed in self._results)
            item, error = self._results[self._handed]
            if error is not None:
                raise error
            del self._results[self._handed]
            self._handed += 1
            self._changed.notify_all()
        assert item is not None
        return item

    def close(self) -> None:
        """Stop, and wait until the threads have ended."""
        atexit.unregister(self.close)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (begun := self._begin()) is not None:
            number, position = begun
            item: Item | None = None
            error: Exception | None = None
            try:
                item = self._read(position)
            except Exception as raised:  # handed to whoever waits for the result
                error = raised
            with self._changed:
                self._results[number] = item, error
                self._stopped |= error is not None
                self._changed.notify_all()

    def _begin(self) -> tuple[int, int] | None:
        """Number and position of the next read, once there is room for its result; None: nothing is left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._begun < self._handed + self._depth)
            if self._stopped:
                return None
            number, position = self._begun, self._position
            self._begun, self._position = number + 1, self._next_position(position)
            return number, position
