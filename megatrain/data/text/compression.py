"""Opening data files, compressed or not. However much a file inflates to, a read gives no more than was asked for."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from backports import zstd

from megatrain.base.errors import DataError, PreflightError
from megatrain.base.files import open_regular, reason, recognise

_BUFFER_BYTES = 1 << 20


def _lz4(raw: BinaryIO) -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise PreflightError("lz4 files need the lz4 library: pip install 'megatrain[lz4]'") from None
    return lz4.frame.LZ4FrameFile(raw)


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".zst": zstd.ZstdFile,
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".lz4": _lz4,
}
COMPRESSED = tuple(_OPENERS)


def split_compression(name: str) -> tuple[str, str]:
    """A file's name in lower case without the ending of its compression, and that ending, or "" where it has none."""
    lowered = name.lower()
    ending = next((ending for ending in COMPRESSED if lowered.endswith(ending)), "")
    return lowered.removesuffix(ending), ending


@contextmanager
def open_data(file: Path) -> Iterator[tuple[IO[bytes], io.BufferedReader]]:
    """The file as it lies on disk (how far it was read), and what it holds, decompressed as its ending says.

    Raises:
        DataError: it is no regular file, cannot be read, or its compressed data is damaged or cut off, here or while
            the `with` block reads.
        PreflightError: the library for its compression is not installed.
    """
    _, ending = split_compression(file.name)
    with open_regular(file, DataError) as raw:
        try:
            stream: Any = _OPENERS[ending](raw) if ending else raw
            yield raw, io.BufferedReader(stream, _BUFFER_BYTES)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
            raise _unreadable(file, ending, error) from None
        except RuntimeError as error:
            if ending != ".lz4":  # the library that has no exceptions of its own
                raise
            raise _unreadable(file, ending, error) from None


def _unreadable(file: Path, ending: str, error: Exception) -> DataError:
    if not ending or getattr(error, "errno", None):
        return DataError(f"{file}: cannot be read: {reason(error)}")
    with open_regular(file, DataError) as raw:
        known = recognise(raw.read(64))
    if known and not known.startswith("compressed"):
        return DataError(f"{file}: is not compressed as its name says: it is {known}")
    return DataError(f"{file}: its compressed data is damaged or cut off ({reason(error)}). Copy the file again.")
