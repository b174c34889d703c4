"""Hashing every byte of a prepared folder, and naming what is damaged."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from megatrain.data.folder.files import FileRecord, sha256_file
from megatrain.data.folder.index import TOKENS_MEMBER, Index, block_hash, member_name, read_index
from megatrain.data.folder.manifest import SOURCES, TOKENIZER, read_manifest
from megatrain.data.preparation.progress import ProgressLine

_CHUNK_BYTES = 1 << 22


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
        if not file.is_file() or sha256_file(file) != sha256:
            yield f"{file}: is missing, or is not {meaning}"
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
    if not file.is_file():
        yield f"{file}: is missing"
        return
    if file.stat().st_size != shard.bytes:
        yield f"{file}: has {file.stat().st_size:,} bytes, not {shard.bytes:,}"
        return
    if _sha256(file, line, before) == shard.sha256:
        return
    damaged = [
        block for block in np.flatnonzero(index.shard == number) if not _is_whole(file, index, block, token_bytes)
    ]
    for block in damaged:
        offset = int(index.offset[block])
        yield f"{file}: {member_name(int(block), TOKENS_MEMBER)} at byte {offset}: the hash of this block differs"
    if not damaged:
        yield f"{file}: its SHA-256 differs, outside the blocks"


def _sha256(file: Path, line: ProgressLine, before: int) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as shard:
        while chunk := shard.read(_CHUNK_BYTES):
            digest.update(chunk)
            line.update(bytes_read=before + shard.tell())
    return digest.hexdigest()


def _is_whole(file: Path, index: Index, block: np.intp, token_bytes: int) -> bool:
    with open(file, "rb") as shard:
        shard.seek(int(index.offset[block]))
        tokens = shard.read(int(index.tokens[block]) * token_bytes)
        shard.seek(int(index.ends_offset[block]))
        ends = shard.read(int(index.ends[block]) * 4)
    return block_hash(tokens, ends) == index.hash[block].tobytes().hex()
