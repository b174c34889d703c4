"""Hashing every byte of a prepared folder, and naming what is damaged."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from megatrain.base.errors import DataError
from megatrain.base.files import open_regular, reason, sha256_file
from megatrain.data.folder.hashed_files import FileRecord
from megatrain.data.folder.index import HASH_BYTES, TOKENS_MEMBER, Index, member_name, read_index
from megatrain.data.folder.manifest import SOURCES, TOKENIZER, read_manifest
from megatrain.data.preparation.progress import ProgressLine

_CHUNK_BYTES = 1 << 22
_END_BYTES = 4


def find_damage(path: str | Path, progress: TextIO | None = None) -> Iterator[str]:
    """A line for each file that is not what it was when it was written; within a shard, for each damaged block.

    Args:
        progress: where to tell how far it is.

    Raises:
        DataError: the manifest or the index is missing or damaged, so that nothing else can be judged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    index = read_index(folder, manifest)
    expected = {
        TOKENIZER: (manifest.tokenizer_sha256, "the tokenizer that the data was made with"),
        SOURCES: (manifest.recipe.sources.sha256, "the list of what the data was made from"),
    }
    for name, (sha256, meaning) in expected.items():
        file = folder / name
        try:
            if sha256_file(file, DataError) != sha256:
                yield f"{file}: is not {meaning}"
        except DataError as error:
            yield str(error)
    token_bytes = np.dtype(manifest.recipe.dtype).itemsize
    with ProgressLine(f"verify {folder}", sum(shard.bytes for shard in manifest.shards), progress) as line:
        before = 0
        for number, shard in enumerate(manifest.shards):
            yield from _shard_damage(folder, shard, index, number, token_bytes, line, before)
            before += shard.bytes
            line.update(bytes_read=before)


def _shard_damage(
    folder: Path, shard: FileRecord, index: Index, number: int, token_bytes: int, line: ProgressLine, before: int
) -> Iterator[str]:
    file = folder / shard.name
    try:
        with open_regular(file, DataError) as source:
            size = source.seek(0, os.SEEK_END)
            source.seek(0)
            if size != shard.bytes:
                yield f"{file}: has {size:,} bytes, not {shard.bytes:,}"
                return
            reading = _Hashing(source, lambda read: line.update(bytes_read=before + read))
            damaged = [*reading.damaged_blocks(index, np.flatnonzero(index.shard == number).tolist(), token_bytes)]
            whole = reading.rest()
    except OSError as error:
        yield f"{file}: cannot be read: {reason(error)}"
        return
    except DataError as error:
        yield str(error)
        return
    for block in damaged:
        where = f"{member_name(block, TOKENS_MEMBER)} at byte {int(index.offset[block])}"
        yield f"{file}: {where}: the hash of this block differs"
    if whole != shard.sha256 and not damaged:
        yield f"{file}: its SHA-256 differs, outside the blocks"


class _Hashing:
    """A shard that is read once, from front to back: the index is known to name payloads in that order, within it."""

    def __init__(self, source: BinaryIO, progress: Callable[[int], None]) -> None:
        self._source, self._progress = source, progress
        self._whole = hashlib.sha256()

    def damaged_blocks(self, index: Index, blocks: list[int], token_bytes: int) -> Iterator[int]:
        """Those of the shard's blocks, ascending, whose payloads do not have the checksum that the index says."""
        for block in blocks:
            payloads = hashlib.blake2b(digest_size=HASH_BYTES)
            tokens = int(index.offset[block]), int(index.tokens[block]) * token_bytes
            for first, size in (tokens, (int(index.ends_offset[block]), int(index.ends[block]) * _END_BYTES)):
                self._read_to(first)
                self._read_to(first + size, payloads.update)
            if payloads.digest() != index.hash[block].tobytes():
                yield block

    def rest(self) -> str:
        """SHA-256 of the whole file, in hexadecimal."""
        self._read_to(sys.maxsize)
        return self._whole.hexdigest()

    def _read_to(self, stop: int, hash_too: Callable[[bytes], None] | None = None) -> None:
        while chunk := self._source.read(min(stop - self._source.tell(), _CHUNK_BYTES)):
            self._whole.update(chunk)
            if hash_too:
                hash_too(chunk)
            self._progress(self._source.tell())
