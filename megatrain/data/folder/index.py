"""`index.npz`: where each block lies in its shard, one column a fact. Written while the shards are; no pickle.

A block is a run of up to block_tokens + 1 tokens. Neighbouring blocks share one token: the last of a block, its
lookahead, is the first of the next, so that every block has the target of its last input. Where documents were packed
by best fit, a block is so many whole rows instead, which share nothing.
"""

import hashlib
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.data.folder.locations import join, read_file
from megatrain.data.folder.manifest import INDEX, Manifest
from megatrain.errors import DataError

HASH_BYTES = 16
TOKENS_MEMBER, ENDS_MEMBER = ".tokens", ".ends"  # what the names of a block's two tar members end with


class BlockRecord(NamedTuple):
    """One block: its token and document-end payloads in the shard's bytes, and their hash."""

    offset: int
    tokens: int
    ends_offset: int
    ends: int
    hash: str
    targets: tuple[int, ...] = ()  # of each packed row


def member_name(block: int, suffix: str) -> str:
    return f"{block:08d}{suffix}"


def block_hash(tokens: bytes, ends: bytes) -> str:
    """BLAKE2b of both payloads, as they lie in the shard, in hexadecimal."""
    return hashlib.blake2b(tokens + ends, digest_size=HASH_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Index:
    """One entry a block, in the order of the token stream."""

    shard: NDArray[np.int32]
    offset: NDArray[np.int64]  # bytes from the shard's start
    tokens: NDArray[np.int32]
    ends_offset: NDArray[np.int64]
    ends: NDArray[np.int32]
    hash: NDArray[np.uint8]  # [blocks, HASH_BYTES]
    targets: NDArray[np.unsignedinteger]  # labels with a target of each packed row, in order; empty with concatenation

    def __len__(self) -> int:
        return len(self.shard)

    @classmethod
    def of(cls, shards: list[list[BlockRecord]]) -> "Index":
        blocks = [(number, block) for number, shard in enumerate(shards) for block in shard]
        hashes = b"".join(bytes.fromhex(block.hash) for _, block in blocks)
        targets = [count for _, block in blocks for count in block.targets]
        return cls(
            shard=np.array([number for number, _ in blocks], dtype=np.int32),
            offset=np.array([block.offset for _, block in blocks], dtype=np.int64),
            tokens=np.array([block.tokens for _, block in blocks], dtype=np.int32),
            ends_offset=np.array([block.ends_offset for _, block in blocks], dtype=np.int64),
            ends=np.array([block.ends for _, block in blocks], dtype=np.int32),
            hash=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
            targets=np.array(targets, dtype=np.min_scalar_type(max(targets, default=0))),
        )

    def dumps(self) -> bytes:
        """The bytes of the file; the same index always gives the same bytes."""
        file = io.BytesIO()
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(file, **columns)
        return file.getvalue()


def read_index(folder: str | Path, manifest: Manifest) -> Index:
    """Read and check a folder's index.

    Raises:
        DataError: it is missing, or is not the one that the manifest was written with.
    """
    file = join(folder, INDEX)
    try:
        data = read_file(folder, INDEX)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}. Prepare the data again.") from None
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise DataError(f"{file}: is damaged: its SHA-256 is not the manifest's. Copy it again, or prepare again.")
    with np.load(io.BytesIO(data), allow_pickle=False) as columns:
        return Index(**{field.name: columns[field.name] for field in fields(Index)})
