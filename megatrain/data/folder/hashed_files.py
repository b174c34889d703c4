"""Files that appear whole or not at all, with the SHA-256 of what was written."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

from pydantic import ConfigDict, Field

from megatrain.base.errors import DataError
from megatrain.base.files import sync_folder

TEMPORARY = ".tmp"  # suffix of a file that is being written

Count = Annotated[int, Field(strict=True, ge=0, le=10**15)]
Sha256 = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be, to be the file that was meant."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    bytes: Count
    sha256: Sha256


class HashingWriter:
    """A binary file that knows the SHA-256 of what was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._position = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._position += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._position

    def record(self, name: str) -> FileRecord:
        return FileRecord(name, self._position, self._hash.hexdigest())


@contextmanager
def atomic_file(path: Path) -> Iterator[HashingWriter]:
    """Write `path` under a temporary name; it gets its own name only once every byte is on disk.

    The temporary name is fixed, so that a killed run leaves at most one, which the next run overwrites.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield HashingWriter(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_writable(path, error) from None


def write_bytes(path: Path, data: bytes) -> FileRecord:
    with atomic_file(path) as file:
        file.write(data)
    return file.record(path.name)


def make_folder(folder: Path) -> None:
    """Create a folder and those above it.

    Raises:
        DataError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from None


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to an existing folder. The lock ends with the process, however that ends.

    Raises:
        DataError: another process is writing there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise DataError(
                f"{folder}: another process is writing here. Wait for it, or choose another folder."
            ) from None
        # a file system without locks (some mounts of Lustre): the user's care has to do
    try:
        yield
    finally:
        os.close(descriptor)


def _not_writable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be written: {error.strerror}. Fix that and run the command again.")
