"""`index.npz`: where each block lies in its shard, one column a fact. Written while the shards are; no pickle.

Whatever is read is held against the manifest: how many entries of what kind there are before any of them is taken into
memory, and then where each block lies, so that no other part has to doubt a column.

A block is a run of up to block_tokens + 1 tokens. Neighbouring blocks share one token: the last of a block, its
lookahead, is the first of the next, so that every block has the target of its last input. Where documents were packed
by best fit, a block is so many whole rows instead, which share nothing.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.data.folder.locations import join, read_file
from megatrain.data.folder.manifest import INDEX, Manifest
from megatrain.data.folder.npy import parse_npy

HASH_BYTES = 16
_END_BYTES = 4  # of a document end
_INDEX_BYTES = 16 << 10  # of names and headers, at most
_BLOCK_BYTES = 64  # of an entry in all columns, at most
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
    """One entry per block, in the order of the token stream."""

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
        DataError: it is missing, is not the one that the manifest was written with, or does not agree with it.
    """
    file = join(folder, INDEX)
    rows = manifest.packed.rows if manifest.packed else 0
    try:
        data = read_file(folder, INDEX, limit=_INDEX_BYTES + _BLOCK_BYTES * manifest.blocks + 8 * rows)
    except FileNotFoundError:
        raise DataError(f"{file}: is missing. Copy it again, or prepare the data again.") from None
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise DataError(f"{file}: is damaged: its SHA-256 is not the manifest's. Copy it again, or prepare again.")
    index = Index(**_columns(data, file, manifest.blocks, rows))
    for problem in _contradictions(index, manifest):
        raise DataError(f"{file}: {problem}: not as `megatrain data prepare` writes it. Prepare the data again.")
    return index


def _columns(data: bytes, file: str, blocks: int, rows: int) -> dict[str, NDArray[Any]]:
    """The arrays of an uncompressed npz, if they have these sizes; nothing is allocated before that is known."""
    expected = {
        **dict.fromkeys(("shard", "tokens", "ends"), (("<i4",), (blocks,))),
        **dict.fromkeys(("offset", "ends_offset"), (("<i8",), (blocks,))),
        "hash": (("|u1",), (blocks, HASH_BYTES)),
        "targets": (("|u1", "<u2", "<u4"), (rows,)),
    }
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name, (dtypes, shape) in expected.items():
                member = archive.getinfo(f"{name}.npy")
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                    raise ValueError(f"{name}: is compressed, or larger than the file")
                found[name] = parse_npy(archive.read(member), dtypes=dtypes, shape=shape)
    except Exception as error:  # whatever zipfile makes of a damaged archive
        raise DataError(f"{file}: is damaged: {error}. Prepare the data again.") from None
    return found


def _contradictions(index: Index, manifest: Manifest) -> Iterator[str]:
    """What the columns say that cannot be."""
    packed, recipe, number = manifest.packed, manifest.recipe, np.arange(len(index))
    checks: dict[str, NDArray[np.bool_]] = {
        "shard": index.shard == number // recipe.shard_blocks,
        "tokens": index.tokens == _tokens_of_blocks(manifest),
        "ends": (index.ends >= 0) & (index.ends <= index.tokens),
    }
    for column, right in checks.items():
        if not right.all():
            block = int(right.argmin())
            yield f"{column} of block {block}: {getattr(index, column)[block]}"
    sizes = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)[number // recipe.shard_blocks]
    after_tokens = index.offset + _member_bytes(index.tokens, np.dtype(recipe.dtype).itemsize)
    after_ends = index.ends_offset + _member_bytes(index.ends, _END_BYTES)
    first = number % recipe.shard_blocks == 0
    right = (
        (index.offset == np.where(first, BLOCKSIZE, np.roll(after_ends, 1)))
        & (index.ends_offset == after_tokens)
        & (index.ends_offset + index.ends.astype(np.int64) * _END_BYTES <= sizes)
    )
    if not right.all():
        block = int(right.argmin())
        yield f"offsets of block {block}: {index.offset[block]}, {index.ends_offset[block]}"
    ends = int(index.ends.sum(dtype=np.int64))
    if packed and recipe.packing:
        if ends != packed.pieces or int(index.targets.sum(dtype=np.int64)) != packed.targets:
            yield f"ends and targets: {ends} and {index.targets.sum()} in all"
        if index.targets.size and int(index.targets.max()) > recipe.packing.sequence_length:
            yield f"targets: {index.targets.max()} in a row"
    elif not manifest.documents <= ends < manifest.documents + len(index):  # two blocks may hold one end
        yield f"ends: {ends} in all, of {manifest.documents} documents"


def _member_bytes(counts: NDArray[np.int32], itemsize: int) -> NDArray[np.int64]:
    """From the start of a tar member of so many items to that of the next: it is padded, and a header follows."""
    return -(-counts.astype(np.int64) * itemsize // BLOCKSIZE) * BLOCKSIZE + BLOCKSIZE


def _tokens_of_blocks(manifest: Manifest) -> NDArray[np.int64]:
    """How many tokens each block has: all the same but the last."""
    packing, blocks = manifest.recipe.packing, manifest.blocks
    if manifest.packed and packing:
        row_tokens = packing.sequence_length + 1
        full = manifest.rows_per_block(packing.sequence_length) * row_tokens
        total = manifest.packed.rows * row_tokens
    else:
        full, total = manifest.block_tokens + 1, manifest.tokens + blocks - 1  # the shared ones counted twice
    tokens = np.full(blocks, full, dtype=np.int64)
    tokens[-1] = total - (blocks - 1) * full
    return tokens
