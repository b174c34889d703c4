"""What a checkpoint's `.metadata` says it holds, held against the files beside it: chunks cover each tensor exactly,
and each lies within its file. No torch. How the file is read without trust: metadata_pickle.py.
"""

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatrain.base.errors import CheckpointError
from megatrain.base.files import read_bytes, reason
from megatrain.base.garbage import no_collection
from megatrain.checkpoint.coverage import are_integers, covers_exactly
from megatrain.checkpoint.manifest import METADATA
from megatrain.checkpoint.metadata_pickle import (
    ITEM_BYTES,
    BytesEntry,
    Chunk,
    ChunkLocation,
    IndexEntry,
    NotOursError,
    PropertiesEntry,
    TensorEntry,
    parse_metadata,
)
from megatrain.checkpoint.state import read_state

_LIMIT_BESIDE_DATA = 1 << 20  # bytes of .metadata beyond those of the data: a chunk's entry is smaller than the chunk
_SAVED_AROUND = 1 << 20  # the most that torch.save puts around a chunk's numbers (1.5 KiB is usual)
_LARGEST = 1 << 60  # elements of a tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, cut into chunks; `locations` says, by a chunk's offsets, where it lies."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    chunks: "list[Chunk]"
    locations: "dict[tuple[int, ...], ChunkLocation]"


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """What a checkpoint holds, by name.

    Raises:
        CheckpointError: `.metadata` is absent, not as DCP writes it, or does not describe the files beside it.
    """
    path = folder / METADATA
    files = _data_files(folder)
    content = read_bytes(path, limit=_LIMIT_BESIDE_DATA + sum(files.values()), error=CheckpointError)
    try:
        tensors, storage = parse_metadata(content)
        with no_collection():
            locations = _locations_by_tensor(tensors, storage, files)
            cuts: _Cuts = {}
            found = {name: _stored(name, entry, locations.get(name, {}), cuts) for name, entry in tensors.items()}
            _check_apart(storage.values(), list(files))
            return found
    except NotOursError as wrong:
        raise CheckpointError(f"{path}: {wrong}") from None
    except Exception as error:  # damaged bytes can make an unpickler raise nearly anything
        raise CheckpointError(f"{path}: is damaged: {type(error).__name__}: {error}") from None


def check_contents(folder: Path) -> list[str]:
    """What is wrong with what a checkpoint says, beyond its bytes being the ones that were written; a line each."""
    found = []
    for read in (read_state, read_stored_tensors):
        try:
            read(folder)
        except CheckpointError as error:
            found.append(str(error))
    return found


def _data_files(folder: Path) -> dict[str, int]:
    """Sizes of the plain files that tensors may lie in."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.name.endswith(".distcp") and e.is_file()}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}") from None


def _locations_by_tensor(
    tensors: dict[str, Any], storage: dict[Any, Any], files: Mapping[str, int]
) -> dict[str, dict[tuple[int, ...], ChunkLocation]]:
    """Where each tensor's chunks lie, checked against the files; as many as
    all tensors together have chunks."""
    chunks = 0
    for name, entry in tensors.items():
        if type(name) is not str or type(entry) is not TensorEntry:
            kind = "a pickled object" if type(entry) is BytesEntry else "no tensor"
            raise NotOursError(f"{str(name)[:100]!r} is {kind}; a checkpoint of megatrain holds tensors only; refused")
        if type(entry.chunks) is not list:
            raise NotOursError(f"{name}: has no list of chunks")
        chunks += len(entry.chunks)
    if chunks != len(storage):
        raise NotOursError(f"its tensors have {chunks:,} chunks, and {len(storage):,} are stored")
    found: dict[str, dict[tuple[int, ...], ChunkLocation]] = {}
    for index, location in storage.items():
        if type(index) is not IndexEntry or type(location) is not ChunkLocation or type(index.name) is not str:
            raise NotOursError("has a storage description that is not DCP's")
        if index.offsets is None or not are_integers(index.offsets):
            raise NotOursError(f"{index.name}: has a chunk whose offsets are not integers")
        if type(location.file) is not str or location.file not in files:
            file = repr(location.file[:100]) if type(location.file) is str else f"a {type(location.file).__name__}"
            raise NotOursError(f"{index.name}: is said to lie in {file}, which is no data file here")
        if (
            type(location.offset) is not int
            or type(location.length) is not int
            or location.offset < 0
            or location.length <= 0
        ):
            raise NotOursError(f"{index.name}: has no valid place in {location.file}")
        if location.offset + location.length > files[location.file]:
            raise NotOursError(f"{index.name}: lies beyond the end of {location.file}")
        found.setdefault(index.name, {})[index.offsets] = location
    return found


def _check_apart(locations: Collection[ChunkLocation], files: list[str]) -> None:
    """Bytes that two chunks share would let a small file hold tensors of any size."""
    numbers = {file: number for number, file in enumerate(files)}
    count = len(locations)
    file = np.fromiter((numbers[location.file] for location in locations), dtype=np.int64, count=count)
    begin = np.fromiter((location.offset for location in locations), dtype=np.int64, count=count)
    end = begin + np.fromiter((location.length for location in locations), dtype=np.int64, count=count)
    order = np.lexsort((begin, file))
    shared = (file[order][1:] == file[order][:-1]) & (begin[order][1:] < end[order][:-1])
    if shared.any():
        raise NotOursError(f"{files[file[order][1:][shared][0]]}: two chunks are said to share bytes of it")


# By a list of chunks, the tensor's shape and its numbers' width: offsets, sizes and bytes of each. Tensors that are cut
# alike share one list, which is looked through once.
_Cuts = dict[tuple[int, tuple[int, ...], int], list[tuple[tuple[int, ...], tuple[int, ...], int]]]


def _stored(name: str, entry: Any, locations: dict[tuple[int, ...], ChunkLocation], known: _Cuts) -> StoredTensor:
    shape, properties = entry.size, entry.properties
    if (
        type(properties) is not PropertiesEntry
        or type(properties.dtype) is not str
        or properties.dtype not in ITEM_BYTES
    ):
        raise NotOursError(f"{name}: has no dtype of {', '.join(ITEM_BYTES)}")
    if type(shape) is not tuple or not all(type(size) is int and 0 < size <= _LARGEST for size in shape):
        raise NotOursError(f"{name}: has no valid shape")
    if math.prod(size + 1 for size in shape) > _LARGEST:
        raise NotOursError(f"{name}: has a shape that is too large: {shape}")
    width = ITEM_BYTES[properties.dtype]
    key = id(entry.chunks), shape, width
    if key not in known:
        known[key] = _cut(name, shape, width, entry.chunks)
    for offsets, sizes, number_bytes in known[key]:
        location = locations.get(offsets)
        if location is None:
            raise NotOursError(f"{name}: its chunk at {offsets} is not stored")
        if not 0 <= location.length - number_bytes <= _SAVED_AROUND:
            raise NotOursError(f"{name}: its chunk at {offsets} has not the size that is stored for it")
        location.sizes = sizes
    return StoredTensor(properties.dtype, shape, entry.chunks, locations)


def _cut(name: str, shape: tuple[int, ...], width: int, chunks: list[Any]) -> list[tuple[Any, Any, int]]:
    if not all(type(chunk) is Chunk for chunk in chunks):
        raise NotOursError(f"{name}: has chunks that are not DCP's")
    if not covers_exactly(shape, [c.offsets for c in chunks], [c.sizes for c in chunks]):
        raise NotOursError(f"{name}: its chunks do not cover it exactly")
    return [(c.offsets, c.sizes, width * math.prod(c.sizes)) for c in chunks]
