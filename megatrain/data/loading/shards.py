"""Reading one prepared folder, many rows at a time, each with one read.

Opening checks names, sizes and the index, `storage` that a shard stays as it was; every row is checked for its length
and vocabulary. The hash of a block is
checked when it is first read only where that is asked for (`data.reading.verify_blocks`): hashing a whole block for a
few rows of it multiplies the bytes that each rank reads. `verify.find_damage` checks them all beforehand.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.base.terminal import copyable
from megatrain.config import ReadingSection
from megatrain.data.folder.index import ENDS_MEMBER, TOKENS_MEMBER, block_hash, member_name, read_index
from megatrain.data.folder.locations import is_remote, join, location
from megatrain.data.folder.manifest import Manifest, read_manifest
from megatrain.data.folder.storage import (
    CHECK_SECONDS,
    LocalStorage,
    Range,
    ReadError,
    Storage,
    check_shards,
    descriptor_budget,
)
from megatrain.data.loading.batch import Rows

_CACHED_ENDS = 8192  # blocks whose document ends are kept
_END_DTYPE = np.dtype("<u4")

Int64 = NDArray[np.int64]
Tokens = NDArray[np.unsignedinteger]


class BlockError(DataError):
    """A block that cannot be read, or is not what was written."""

    def __init__(self, message: str, path: str, block: int) -> None:
        super().__init__(message)
        self.path = path
        self.block = block


class PreparedData:
    """A folder written by `megatrain data prepare`, open for reading. Safe to use from several threads.

    Args:
        path: a folder, or the http(s):// or s3:// address of one.
        reading: threads, retries and caches of reads.
        open_files: most shards open at once.

    Raises:
        DataError: a file is missing, has the wrong size, or does not belong to the manifest; the message names it.
    """

    def __init__(
        self, path: str | Path, reading: ReadingSection | None = None, *, open_files: int | None = None
    ) -> None:
        self.path = location(path)
        self.manifest: Manifest = read_manifest(path)
        self.index = read_index(path, self.manifest)
        self._reading = reading or ReadingSection()
        self._storage = self._open_storage(open_files or descriptor_budget())
        self._dtype = np.dtype(self.manifest.recipe.dtype).newbyteorder("<")
        self._ends: OrderedDict[int, Int64] = OrderedDict()  # of blocks, the least recently used first
        self._lock = threading.Lock()
        self._verified = np.zeros(len(self.index), dtype=np.bool_)

    def read_rows(self, blocks: Int64, rows: Int64, sequence_length: int, *, with_ends: bool = True) -> Rows:
        """Rows of blocks, each int64 [N]: their inputs and last target, and where documents end.

        Tokens are uint16 or uint32 [N, sequence_length + 1]; ends are ascending in 1..sequence_length, one past each
        EOS; none where they are not asked for, which saves reading them (packed rows always have them).

        Raises:
            BlockError: a shard cannot be read, holds a token outside the vocabulary, or, where blocks are verified,
                other bytes than were written.
        """
        if self._reading.verify_blocks:
            self._verify(blocks)
        starts = rows * self.manifest.row_stride(sequence_length)
        tokens = self._read_tokens(blocks, starts, sequence_length + 1)
        targets = self.row_targets(blocks, rows)
        if not with_ends and targets is None:
            return Rows(tokens, [np.empty(0, dtype=np.int64)] * len(blocks), [None] * len(blocks))
        of_block = self._ends_of(blocks.tolist())
        ends = [
            _within(of_block[block], start, sequence_length)
            for block, start in zip(blocks.tolist(), starts.tolist(), strict=True)
        ]
        return Rows(tokens, ends, [None] * len(blocks) if targets is None else targets.tolist())

    def row_targets(self, blocks: Int64, rows: Int64) -> Int64 | None:
        """Labels with a target in each row, int64 [N]; None with concatenation: all have one."""
        packing = self.manifest.recipe.packing
        if packing is None:
            return None
        of_block = self.manifest.rows_per_block(packing.sequence_length)
        return self.index.targets[blocks * of_block + rows].astype(np.int64)

    def read_row(self, block: int, row: int, sequence_length: int) -> tuple[Tokens, Int64]:
        """One row: its tokens, uint16 or uint32 [sequence_length + 1], and its document ends; see `read_rows`."""
        found = self.read_rows(np.array([block]), np.array([row]), sequence_length)
        return found.tokens[0], found.ends[0]

    def read_tokens(self, block: int, row: int, sequence_length: int) -> Tokens:
        """The row's inputs and its last target: uint16 or uint32 [sequence_length + 1]; see `read_rows`."""
        return self.read_rows(np.array([block]), np.array([row]), sequence_length, with_ends=False).tokens[0]

    def block_tokens(self, block: int) -> Tokens:
        """All tokens of a block, its lookahead token the last."""
        return np.frombuffer(self._block_payloads(block)[0], dtype=self._dtype)

    def block_ends(self, block: int) -> Int64:
        """Where documents end within a block, int64 ascending in 1..tokens."""
        return self._ends_of([block])[block]

    def where(self, block: int) -> str:
        """The shard that holds a block."""
        return self.manifest.shards[int(self.index.shard[block])].name

    def close(self) -> None:
        self._storage.close()

    def _open_storage(self, open_files: int) -> Storage:
        shards = self.manifest.shards
        if is_remote(self.path):
            from megatrain.data.folder.remote import (
                open_remote,  # needs fsspec's http or s3, which not everybody installs
            )

            return open_remote(self.path, shards, self._reading, open_files=open_files)
        return LocalStorage(
            Path(self.path),
            shards,
            open_files=open_files,
            attempts=self._reading.attempts,
            check_seconds=0 if self._reading.verify_blocks else CHECK_SECONDS,
            states=check_shards(Path(self.path), shards),
        )

    def _read_tokens(self, blocks: Int64, starts: Int64, count: int) -> Tokens:
        assert (starts + count <= self.index.tokens[blocks]).all(), "a row beyond its block"
        shards = self.index.shard[blocks].tolist()
        offsets = (self.index.offset[blocks] + starts * self._dtype.itemsize).tolist()
        tokens = np.empty((len(blocks), count), self._dtype)
        for _ in range(self._reading.attempts):
            try:
                self._storage.read_rows(shards, offsets, tokens.view(np.uint8))
            except ReadError as error:
                at = list(zip(shards, offsets, strict=True)).index(error.range[:2])
                raise self._error(int(blocks[at]), TOKENS_MEMBER, error.range.offset, error.reason) from None
            if int(tokens.max(initial=0)) < self.manifest.vocab_size:
                return tokens
        worst = int(tokens.max(axis=1).argmax())
        raise self._error(
            int(blocks[worst]),
            TOKENS_MEMBER,
            offsets[worst],
            f"holds token {tokens[worst].max()}, outside the vocabulary of {self.manifest.vocab_size}: the shard is "
            f"damaged. Run `megatrain data verify {copyable(self.path)}`.",
        )

    def _ends_of(self, blocks: Sequence[int]) -> dict[int, Int64]:
        """Document ends of blocks, from the cache or else read, all at once."""
        with self._lock:
            found = {block: self._ends[block] for block in blocks if block in self._ends}
        missing = sorted(set(blocks) - found.keys())
        if missing:
            found |= self._read_ends(missing)
            with self._lock:
                self._ends |= found
                while len(self._ends) > _CACHED_ENDS:
                    self._ends.popitem(last=False)
        return found

    def _read_ends(self, blocks: list[int]) -> dict[int, Int64]:
        ranges = [self._range(block, ENDS_MEMBER) for block in blocks]
        try:
            payloads = self._storage.read(ranges)
        except ReadError as error:
            raise self._error(
                blocks[ranges.index(error.range)], ENDS_MEMBER, error.range.offset, error.reason
            ) from None
        found = {}
        for block, payload in zip(blocks, payloads, strict=True):
            ends = np.frombuffer(payload, dtype=_END_DTYPE).astype(np.int64)
            if ends.size and (ends[0] < 1 or ends[-1] > self.index.tokens[block] or (np.diff(ends) < 1).any()):
                offset = int(self.index.ends_offset[block])
                reason = (
                    f"holds document ends out of order: damaged. Run `megatrain data verify {copyable(self.path)}`."
                )
                raise self._error(block, ENDS_MEMBER, offset, reason)
            found[block] = ends
        return found

    def _range(self, block: int, suffix: str) -> Range:
        index, shard = self.index, int(self.index.shard[block])
        if suffix == TOKENS_MEMBER:
            return Range(shard, int(index.offset[block]), int(index.tokens[block]) * self._dtype.itemsize)
        return Range(shard, int(index.ends_offset[block]), int(index.ends[block]) * _END_DTYPE.itemsize)

    def _block_payloads(self, block: int) -> list[bytes]:
        ranges = [self._range(block, suffix) for suffix in (TOKENS_MEMBER, ENDS_MEMBER)]
        try:
            return self._storage.read(ranges)
        except ReadError as error:
            suffix = TOKENS_MEMBER if error.range == ranges[0] else ENDS_MEMBER
            raise self._error(block, suffix, error.range.offset, error.reason) from None

    def _verify(self, blocks: Int64) -> None:
        for block in np.unique(blocks[~self._verified[blocks]]).tolist():
            for _ in range(self._reading.attempts):
                if block_hash(*self._block_payloads(block)) == bytes(self.index.hash[block]).hex():
                    break
            else:
                reason = "checksum mismatch: it is not what was written. Copy the shard again."
                raise self._error(block, TOKENS_MEMBER, int(self.index.offset[block]), reason)
            self._verified[block] = True

    def _error(self, block: int, suffix: str, offset: int, reason: str) -> BlockError:
        member = member_name(block, suffix)
        return BlockError(
            f"{join(self.path, self.where(block))}: {member} at byte {offset}: {reason}", self.path, block
        )


def _within(ends: Int64, start: int, length: int) -> Int64:
    """The ends within (start, start + length], counted from start."""
    first, last = ends.searchsorted(start, side="right"), ends.searchsorted(start + length, side="right")
    return ends[first:last] - start
