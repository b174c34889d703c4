"""Shards behind http(s) or in S3, read through fsspec: many ranges at once, each retried, timed and hedged.

A server that answers a range with the whole file cannot be read like that: its shards are copied whole into a bounded
folder on this machine, checked against their hash, and read there.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.asyn
import numpy as np
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.base.files import sha256_file
from megatrain.config import ReadingSection
from megatrain.data.folder.hashed_files import TEMPORARY, FileRecord
from megatrain.data.folder.locations import join, not_installed
from megatrain.data.folder.manifest import MANIFEST
from megatrain.data.folder.storage import FileState, LocalStorage, OpenFile, Range, ReadError, Storage

_BACKOFF_SECONDS = 0.25  # before the second try; twice as long before each further one
_MOST_JOINED = 8 << 20  # bytes of neighbouring ranges that are asked for as one

Result = TypeVar("Result")


class RemoteFiles:
    """Files under one address, each read with patience.

    Raises:
        PreflightError: what the address needs is not installed.
    """

    def __init__(self, address: str, reading: ReadingSection) -> None:
        self.address = address
        self._reading = reading
        options: dict[str, Any] = {"skip_instance_cache": True}
        if address.startswith("s3://"):
            options["config_kwargs"] = {"max_pool_connections": 2 * reading.connections}  # hedges need one, too
        try:
            fs, self._root = fsspec.core.url_to_fs(address, **options)
        except (ImportError, ValueError) as error:
            raise not_installed(address, error) from None
        self._fs = fs if fs.async_impl else AsyncFileSystemWrapper(fs)
        self._slots = asyncio.Semaphore(reading.connections)

    def fetch(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or of a range of it: as many as the server gave. Raises OSError."""
        return self._run(lambda: self._patiently(lambda: self._get(name, start, stop)))

    def fetch_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | OSError]:
        """`size` bytes from `offset` of each (name, offset, size), at once; an error stands in for its bytes."""

        async def whole(name: str, offset: int, size: int) -> bytes:
            data = await self._get(name, offset, offset + size)
            if len(data) != size:
                raise OSError(f"got {len(data)} of {size} bytes")
            return data

        async def each() -> list[bytes | OSError]:
            tasks = [self._patiently(lambda of=of: whole(*of)) for of in ranges]  # type: ignore[misc]
            return await asyncio.gather(*tasks, return_exceptions=True)  # type: ignore[return-value]

        return self._run(each)

    def download(self, name: str, to: Path) -> None:
        """Copy a whole file. Raises OSError."""

        async def get() -> None:
            await self._fs._get_file(join(self._root, name), str(to))

        self._run(lambda: self._patiently(get, slow=True))

    def _run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        result: Result = fsspec.asyn.sync(self._fs.loop or fsspec.asyn.get_loop(), work)
        return result

    async def _get(self, name: str, start: int | None, stop: int | None) -> bytes:
        data: bytes = await self._fs._cat_file(join(self._root, name), start=start, end=stop)
        return data

    async def _patiently(self, read: Callable[[], Coroutine[Any, Any, Result]], *, slow: bool = False) -> Result:
        """Try until it works or the attempts are spent. What is slow by nature has no time-out and is not hedged."""
        reason = ""
        async with self._slots:
            for attempt in range(self._reading.attempts):
                if attempt:
                    await asyncio.sleep(_BACKOFF_SECONDS * 2 ** (attempt - 1))
                try:
                    return await (read() if slow else self._hedged(read))
                except FileNotFoundError:
                    reason = "there is no such file"
                except TimeoutError:
                    reason = f"no answer within {self._reading.timeout_seconds:g} s"
                except Exception as error:  # each protocol has errors of its own
                    reason = str(error) or type(error).__name__
        kind = FileNotFoundError if reason == "there is no such file" else OSError
        raise kind(f"{reason} ({self._reading.attempts} attempts)")

    async def _hedged(self, read: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The first answer to one request, or, if that is slow, to one of two."""
        requests = {asyncio.ensure_future(read())}
        try:
            async with asyncio.timeout(self._reading.timeout_seconds):
                answered, waiting = await asyncio.wait(requests, timeout=self._reading.hedge_seconds)
                if not answered:
                    requests.add(asyncio.ensure_future(read()))
                    answered, waiting = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                while waiting and all(request.exception() for request in answered):
                    answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                return min(answered, key=lambda request: request.exception() is not None).result()
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)


class RemoteStorage:
    """Shards on a server that answers range requests."""

    def __init__(self, files: RemoteFiles, names: Sequence[str]) -> None:
        self._files = files
        self._names = names

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Neighbouring or overlapping ranges are asked for as one, so that no byte is sent twice."""
        joined = _join(ranges)
        wanted = [(self._names[span.shard], span.offset, span.size) for span in joined]
        payloads = dict(zip(joined, self._files.fetch_ranges(wanted), strict=True))
        found: dict[Range, bytes] = {}
        for span, payload in payloads.items():
            inside = joined[span]
            if isinstance(payload, BaseException):
                raise ReadError(inside[0], f"cannot be read: {payload}")
            for range_ in inside:
                first = range_.offset - span.offset
                found[range_] = payload[first : first + range_.size]
        return [found[range_] for range_ in ranges]

    def read_rows(self, shards: Sequence[int], offsets: Sequence[int], out: NDArray[np.uint8]) -> None:
        size = out.shape[1]
        rows = self.read([Range(shard, offset, size) for shard, offset in zip(shards, offsets, strict=True)])
        out[:] = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(out.shape)

    def close(self) -> None:
        """Connections end with the process."""


class CachedStorage(LocalStorage):
    """Whole shards, copied here when they are first read; the least recently used make room for others.

    Several processes may share the folder: a copy appears whole or not at all, and one that another process removes is
    read to its end by those that have it open.
    """

    def __init__(
        self, files: RemoteFiles, shards: Sequence[FileRecord], folder: Path, reading: ReadingSection, open_files: int
    ) -> None:
        super().__init__(folder, shards, open_files=open_files, attempts=1)
        self._remote = files
        self._limit = reading.cache_mebibytes << 20

    def path_of(self, shard: int) -> Path:
        record = self.shards[shard]
        path = self.folder / f"{record.sha256[:16]}-{record.name}"
        if not path.is_file():
            self._make_room(record.bytes)
            self._copy(record, path)
        os.utime(path)  # used now
        return path

    def state_of(self, shard: int, file: OpenFile) -> FileState:
        """Of what is open: another process may have removed the name to make room."""
        return file.state

    def _copy(self, record: FileRecord, path: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=TEMPORARY)
        os.close(descriptor)
        temporary = Path(name)
        try:
            self._remote.download(record.name, temporary)
            if temporary.stat().st_size != record.bytes or sha256_file(temporary, DataError) != record.sha256:
                raise OSError(None, "checksum mismatch: what was downloaded is not what the manifest says")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        kept = []
        for path in self.folder.glob("*.tar"):
            try:
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:  # another process made room
                continue
        held = sum(bytes_ for _, bytes_, _ in kept)
        for _, bytes_, path in sorted(kept):
            if held + size <= self._limit:
                return
            path.unlink(missing_ok=True)
            held -= bytes_


def open_remote(address: str, shards: Sequence[FileRecord], reading: ReadingSection, *, open_files: int) -> Storage:
    """The shards of a prepared folder at an address, in the way that its server allows."""
    files = RemoteFiles(address, reading)
    try:
        has_ranges = len(files.fetch(MANIFEST, 0, 1)) == 1
    except OSError as error:
        raise DataError(f"{join(address, MANIFEST)}: cannot be read: {error}") from None
    if has_ranges and not reading.cache_shards:
        return RemoteStorage(files, [shard.name for shard in shards])
    folder = cache_folder(reading) / hashlib.sha256(address.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return CachedStorage(files, shards, folder, reading, open_files)


def cache_folder(reading: ReadingSection) -> Path:
    return Path(reading.cache) if reading.cache else Path.home() / ".cache" / "megatrain"


def read_remote_file(address: str) -> bytes:
    """A whole small file. Raises OSError."""
    folder, _, name = address.rpartition("/")
    return RemoteFiles(folder, ReadingSection()).fetch(name)


def _join(ranges: Sequence[Range]) -> dict[Range, list[Range]]:
    """Spans that cover the ranges, each with those in it."""
    joined: dict[Range, list[Range]] = {}
    span: Range | None = None
    inside: list[Range] = []
    for range_ in sorted(set(ranges)):
        stop = range_.offset + range_.size
        meets = span is not None and span.shard == range_.shard and range_.offset <= span.offset + span.size
        if span is not None and meets and stop - span.offset <= _MOST_JOINED:
            span = span._replace(size=max(span.size, stop - span.offset))
            inside.append(range_)
            continue
        if span is not None:
            joined[span] = inside
        span, inside = range_, [range_]
    if span is not None:
        joined[span] = inside
    return joined
