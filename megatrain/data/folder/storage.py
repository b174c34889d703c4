"""Byte ranges of the shards of one prepared folder, wherever it lies. What the bytes mean is `shards`' business."""

import os
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_BACKOFF_SECONDS = 0.1  # before the second try; twice as long before each further one


class Range(NamedTuple):
    """`size` bytes of shard number `shard`, from byte `offset`."""

    shard: int
    offset: int
    size: int


class ReadError(Exception):
    """A range could not be read, however often it was tried."""

    def __init__(self, range_: Range, reason: str) -> None:
        super().__init__(reason)
        self.range = range_
        self.reason = reason


class Storage(Protocol):
    """Safe to use from several threads. Every method raises ReadError once its tries are spent."""

    def read(self, ranges: Sequence[Range]) -> list[bytes]: ...

    def read_rows(self, shards: Sequence[int], offsets: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Fill out [N, size] with `size` bytes of each shard from each offset."""
        ...

    def close(self) -> None: ...


def descriptor_budget() -> int:
    """Files that reading data may hold open in this process: a quarter of what the process may open."""
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class LocalStorage:
    """Files of a mounted file system, by `pread`.

    Nothing is mapped into memory and few files are open at once, so that thousands of shards meet neither a mmap quota
    nor a descriptor limit.

    Args:
        open_files: most files open at once.
        attempts: tries of a read; a stale handle of a network file system is opened anew.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, open_files: int, attempts: int) -> None:
        self.folder = folder
        self.names = names
        self._open_files = open_files
        self._attempts = attempts
        self._files: OrderedDict[int, _File] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        found = []
        for shard, offset, size in ranges:
            out = np.empty((1, size), dtype=np.uint8)
            self.read_rows([shard], [offset], out)
            found.append(out.tobytes())
        return found

    def read_rows(self, shards: Sequence[int], offsets: Sequence[int], out: NDArray[np.uint8]) -> None:
        size = out.shape[1]
        view = memoryview(out.reshape(-1))  # type: ignore[arg-type]
        at = 0
        for shard, offset in zip(shards, offsets, strict=True):
            row = view[at : at + size]
            try:
                file = self._files[shard]
                got = os.preadv(file.descriptor, [row], offset)
            except (KeyError, OSError):  # not open, closed by another thread, or a failing file
                got = -1
            if got != size:
                self._read_again(Range(shard, offset, size), row)
            at += size

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def path_of(self, shard: int) -> Path:
        """Where the shard's file lies. Raises OSError when it cannot be had."""
        return self.folder / self.names[shard]

    def _read_again(self, range_: Range, out: memoryview) -> None:
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            try:
                file = self._file(range_.shard)
                got = os.preadv(file.descriptor, [out], range_.offset)
                if got == range_.size:
                    return
                reason = f"got {got} of {range_.size} bytes: the shard is cut off. Copy it again."
            except OSError as error:
                reason = f"cannot be read: {error.strerror or error}"
            with self._lock:
                self._files.pop(range_.shard, None)
        raise ReadError(range_, reason)

    def _file(self, shard: int) -> "_File":
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
            while len(self._files) >= self._open_files:
                self._files.popitem(last=False)
            self._files[shard] = _File(self.path_of(shard))
            return self._files[shard]


class _File:
    """A descriptor that is closed once nobody uses it: a thread may still read from a file that another one let go."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
