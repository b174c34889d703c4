"""Byte ranges of the shards of one prepared folder, wherever it lies. What the bytes mean is `shards`' business.

A shard that is written to while a job reads it would change its samples silently. So its size, modification time
and inode are compared with those of the first look now and then, after the bytes were read; where they differ, its
SHA-256 decides: a copy of the same bytes is as good.
"""

import math
import os
import resource
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.base.files import reason, sha256_file
from megatrain.data.folder.hashed_files import FileRecord

SHOWN_SHARDS = 3  # of those with problems
CHECK_SECONDS = 1.0  # between two looks at a shard that is being read
_CHECKS_PER_READ = 8  # shards at most, so that thousands of ranks do not overwhelm a file system's metadata
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


class ChangedError(DataError):
    """A shard is not what it was when the job began to read it."""


class Storage(Protocol):
    """Safe to use from several threads. Every method raises ReadError once its tries are spent, or ChangedError."""

    def read(self, ranges: Sequence[Range]) -> list[bytes]: ...

    def read_rows(self, shards: Sequence[int], offsets: Sequence[int], out: NDArray[np.uint8]) -> None:
        """Fill out [N, size] with `size` bytes of each shard from each offset."""
        ...

    def close(self) -> None: ...


def descriptor_budget() -> int:
    """Files that reading data may hold open in this process: a quarter of what the process may open."""
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class FileState(NamedTuple):
    """By what a change of a file shows."""

    size: int
    modified: int  # nanoseconds
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def difference(self, now: "FileState") -> str:
        if now.size != self.size:
            return f"it has {now.size:,} bytes, had {self.size:,}"
        return "it was replaced by another file" if now.inode != self.inode else "it was written to"


def check_shards(folder: Path, shards: Sequence[FileRecord]) -> list[FileState]:
    """How each shard of a folder is now.

    Raises:
        DataError: some are missing, have another size, or are no regular files; names the first of them.
    """
    states, wrong = [], []
    for shard in shards:
        try:
            status = (folder / shard.name).stat()
        except OSError as error:
            wrong.append(f"{shard.name}: is missing ({reason(error)})")
            continue
        if not stat.S_ISREG(status.st_mode):
            wrong.append(f"{shard.name}: is no regular file")
        elif status.st_size != shard.bytes:
            wrong.append(f"{shard.name}: has {status.st_size:,} bytes, not {shard.bytes:,}")
        states.append(FileState.of(status))
    if wrong:
        more = f", and {len(wrong) - SHOWN_SHARDS} more" if len(wrong) > SHOWN_SHARDS else ""
        raise DataError(f"{folder}/{'; '.join(wrong[:SHOWN_SHARDS])}{more}. Copy the data again, or prepare it again.")
    return states


class LocalStorage:
    """Files of a mounted file system, by `pread`.

    Nothing is mapped into memory and few files are open at once, so that thousands of shards meet neither a mmap quota
    nor a descriptor limit.

    Args:
        open_files: most files open at once.
        attempts: tries of a read; a stale handle of a network file system is opened anew.
        check_seconds: between two looks at a shard that is being read; 0 looks after every read at all that it touched.
        states: how each shard is now; default: as it will be when it is first opened.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[FileRecord],
        *,
        open_files: int,
        attempts: int,
        check_seconds: float = CHECK_SECONDS,
        states: Sequence["FileState"] = (),
    ) -> None:
        self.folder = folder
        self.shards = shards
        self._open_files = open_files
        self._attempts = attempts
        self._check_seconds = check_seconds
        self._files: OrderedDict[int, OpenFile] = OrderedDict()  # the least recently used first
        self._states = dict(enumerate(states))  # of each shard, when it was last known to be what the manifest names
        self._checked: dict[int, float] = {}  # when each shard was last looked at
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
        self._look_for_changes(shards)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def path_of(self, shard: int) -> Path:
        """Where the shard's file lies. Raises OSError when it cannot be had."""
        return self.folder / self.shards[shard].name

    def state_of(self, shard: int, file: "OpenFile") -> "FileState":
        """How the shard's file is now. Raises OSError."""
        return FileState.of(self.path_of(shard).stat())

    def _look_for_changes(self, shards: Sequence[int]) -> None:
        now, looked = time.monotonic(), 0
        for shard in dict.fromkeys(shards):
            if now - self._checked.get(shard, -math.inf) < self._check_seconds:
                continue
            self._checked[shard] = now
            file = self._files.get(shard)
            if file is None:  # closed since: looked at when it is opened again
                continue
            try:
                state = self.state_of(shard, file)
            except OSError as error:
                raise ChangedError(
                    f"{self.path_of(shard)}: was taken away while it was read: {reason(error)}"
                ) from None
            self._require_same(shard, state)
            looked += 1
            if self._check_seconds and looked == _CHECKS_PER_READ:
                return

    def _require_same(self, shard: int, state: "FileState") -> None:
        before = self._states.setdefault(shard, state)
        if state == before:
            return
        record, path = self.shards[shard], self.path_of(shard)
        if state.size != record.bytes or sha256_file(path, DataError) != record.sha256:
            raise ChangedError(
                f"{path}: changed while it was read: {before.difference(state)}, and it no longer has the SHA-256 that "
                "the manifest names. Restore the shard; the run resumes from its last checkpoint."
            )
        self._states[shard] = state

    def _read_again(self, range_: Range, out: memoryview) -> None:
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
            try:
                file = self._file(range_.shard)
                got = os.preadv(file.descriptor, [out], range_.offset)
                if got == range_.size:
                    return
                failure = f"got {got} of {range_.size} bytes: the shard is cut off. Copy it again."
            except OSError as error:
                failure = f"cannot be read: {reason(error)}"
            with self._lock:
                self._files.pop(range_.shard, None)
        raise ReadError(range_, failure)

    def _file(self, shard: int) -> "OpenFile":
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
            while len(self._files) >= self._open_files:
                self._files.popitem(last=False)
            file = OpenFile(self.path_of(shard))
            self._require_same(shard, file.state)
            self._files[shard] = file
            return file


class OpenFile:
    """A descriptor that is closed once nobody uses it: a thread may still read from a file that another one let go."""

    __slots__ = ("descriptor",)

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError(None, "it is no regular file")

    @property
    def state(self) -> FileState:
        return FileState.of(os.fstat(self.descriptor))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `close` is kept, since Python empties modules at exit before it deletes the last file
        if hasattr(self, "descriptor"):
            close(self.descriptor)
