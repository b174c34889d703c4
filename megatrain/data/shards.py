"""Reading one prepared folder, a row at a time, with one `pread` for a row.

Nothing is mapped into memory and few files are open at once, so that thousands of shards meet neither a mmap quota nor
a descriptor limit. Opening checks names, sizes and the index. The hashes of blocks are checked by `verify.find_damage`
only: hashing a whole block for each row read from it would multiply the bytes read by a hundred.
"""

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatrain.data.index import read_index
from megatrain.data.manifest import Manifest, read_manifest
from megatrain.data.writer import ENDS_MEMBER, TOKENS_MEMBER, member_name
from megatrain.errors import DataError

_OPEN_SHARDS = 64
_CACHED_ENDS = 256  # blocks
_END_DTYPE = np.dtype("<u4")

Int64 = NDArray[np.int64]


class PreparedData:
    """A folder written by `megatrain data prepare`, open for reading. Safe to use from several threads.

    Raises:
        DataError: a file is missing, has the wrong size, or does not belong to the manifest; the message names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self.index = read_index(self.path, self.manifest)
        for shard in self.manifest.shards:
            file = self.path / shard.name
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes, not {shard.bytes:,}"
                raise DataError(f"{file}: {found}. Copy it again, or prepare again.")
        self._dtype = np.dtype(self.manifest.recipe.dtype).newbyteorder("<")
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, the least recently used first
        self._lock = threading.Lock()
        self.block_ends = lru_cache(maxsize=_CACHED_ENDS)(self._read_ends)

    def read_row(self, block: int, row: int, sequence_length: int) -> tuple[NDArray[np.unsignedinteger], Int64]:
        """One row: its tokens, uint16 or uint32 [sequence_length + 1], and `row_ends`."""
        return self.read_tokens(block, row, sequence_length), self.row_ends(block, row, sequence_length)

    def read_tokens(self, block: int, row: int, sequence_length: int) -> NDArray[np.unsignedinteger]:
        """The row's inputs and its last target: uint16 or uint32 [sequence_length + 1].

        Raises:
            DataError: the shard cannot be read, or holds a token outside the vocabulary.
        """
        start = row * self.manifest.row_stride(sequence_length)
        assert start + sequence_length < self.index.tokens[block], "a row beyond its block"
        offset = int(self.index.offset[block]) + start * self._dtype.itemsize
        data = self._pread(block, TOKENS_MEMBER, offset, (sequence_length + 1) * self._dtype.itemsize)
        tokens: NDArray[np.unsignedinteger] = np.frombuffer(data, dtype=self._dtype)
        if int(tokens.max()) >= self.manifest.vocab_size:
            where = self._where(block, TOKENS_MEMBER, offset)
            raise DataError(
                f"{where}: holds token {tokens.max()}, outside the vocabulary of {self.manifest.vocab_size}: "
                f"the shard is damaged. Run `megatrain data verify {self.path}`."
            )
        return tokens

    def row_ends(self, block: int, row: int, sequence_length: int) -> Int64:
        """Where documents end within the row's inputs, int64 ascending in 1..sequence_length: one past each EOS."""
        ends = self.block_ends(block)
        start = row * self.manifest.row_stride(sequence_length)
        first, last = np.searchsorted(ends, [start, start + sequence_length], side="right")
        return ends[first:last] - start

    def row_targets(self, block: Int64 | np.int64, row: Int64 | np.int64) -> Any:
        """Labels with a target in each row, int64 [N] or a number; None with concatenation: all have one."""
        packing = self.manifest.recipe.packing
        if packing is None:
            return None
        return self.index.targets[block * self.manifest.rows_per_block(packing.sequence_length) + row].astype(np.int64)

    def block_tokens(self, block: int) -> NDArray[np.unsignedinteger]:
        """All tokens of a block, its lookahead token the last."""
        count = int(self.index.tokens[block]) * self._dtype.itemsize
        return np.frombuffer(self._pread(block, TOKENS_MEMBER, int(self.index.offset[block]), count), dtype=self._dtype)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def _read_ends(self, block: int) -> Int64:
        count = int(self.index.ends[block]) * _END_DTYPE.itemsize
        data = self._pread(block, ENDS_MEMBER, int(self.index.ends_offset[block]), count)
        return np.frombuffer(data, dtype=_END_DTYPE).astype(np.int64)

    def _pread(self, block: int, suffix: str, offset: int, count: int) -> bytes:
        try:
            with self._lock:
                data = os.pread(self._descriptor(int(self.index.shard[block])), count, offset)
        except OSError as error:
            raise DataError(f"{self._where(block, suffix, offset)}: cannot be read: {error.strerror}") from None
        if len(data) != count:
            where = self._where(block, suffix, offset)
            raise DataError(f"{where}: got {len(data)} of {count} bytes: the shard is cut off. Copy it again.")
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) == _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self.path / self.manifest.shards[shard].name, os.O_RDONLY)
        return self._open[shard]

    def _where(self, block: int, suffix: str, offset: int) -> str:
        shard = self.manifest.shards[int(self.index.shard[block])].name
        return f"{self.path / shard}: {member_name(int(block), suffix)} at byte {offset}"
