"""Reads `.metadata`, DCP's pickled table of contents, as data: nothing that it names is imported or called. No torch.

A checkpoint may come from others, and a pickle can run code, fill the memory from ten bytes, or describe tensors that
are not in the files. So the opcodes are looked through first, each class that DCP writes is stood in for by one of
ours, and what comes out is held against the files: chunks cover each tensor exactly, and each lies within its file.
"""

import io
import math
import os
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatrain.base.errors import CheckpointError
from megatrain.base.files import read_bytes, reason
from megatrain.base.garbage import no_collection
from megatrain.checkpoint.manifest import METADATA
from megatrain.checkpoint.state import read_state

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LIMIT_BESIDE_DATA = 1 << 20  # bytes of .metadata beyond those of the data: a chunk's entry is smaller than the chunk
_SAVED_AROUND = 1 << 20  # the most that torch.save puts around a chunk's numbers (1.5 KiB is usual)
_DIMENSIONS = 8
_LARGEST = 1 << 60  # elements of a tensor

# The opcodes that pickle protocols 4 and 5 need for DCP's metadata. What is missing fetches by index (PUT allocates as
# much as it is told), copies, or belongs to older protocols. Strings and long integers are followed by their bytes.
_OTHERS = rb"[\x94)\](useabtR.0N\x81\x85\x86\x87\x88\x89\x93]|[Kh\x80].|M..|[Jj].{4}|\x8a\x08.{8}"
_FRAME = rb"\x95.{8}"
_FIXED = re.compile(rb"(?:\}|" + _FRAME + rb"|" + _OTHERS + rb")*+", re.DOTALL)
_UP_TO_DICT = re.compile(rb"((?:" + _OTHERS + rb")*+)(?:(\})|" + _FRAME + rb")?", re.DOTALL)
_PERSISTENT = b"NQ"  # NONE, BINPERSID: what `persistent_load` makes
_SIZED = {0x8C: 1, ord("X"): 4, 0x8A: 1}  # bytes that hold the length of what follows


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, cut into chunks; `places` says, by a chunk's offsets, where it lies."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    chunks: "list[Chunk]"
    places: "dict[tuple[int, ...], Place]"


def read_stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """What a checkpoint holds, by name.

    Raises:
        CheckpointError: `.metadata` is absent, not as DCP writes it, or does not describe the files beside it.
    """
    path = folder / METADATA
    files = _data_files(folder)
    content = read_bytes(path, limit=_LIMIT_BESIDE_DATA + sum(files.values()), error=CheckpointError)
    try:
        tensors, storage = _parse(content)
        with no_collection():
            places = _places_by_tensor(tensors, storage, files)
            boxes: _Boxes = {}
            found = {name: _stored(name, entry, places.get(name, {}), boxes) for name, entry in tensors.items()}
            _check_apart(storage.values(), list(files))
            return found
    except _WrongError as wrong:
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


class _WrongError(Exception):
    """The text says what is wrong with the file."""


def _data_files(folder: Path) -> dict[str, int]:
    """Sizes of the plain files that tensors may lie in."""
    try:
        with os.scandir(folder) as entries:
            return {e.name: e.stat().st_size for e in entries if e.name.endswith(".distcp") and e.is_file()}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}") from None


def _parse(content: bytes) -> tuple[dict[str, Any], dict[Any, Any]]:
    """state_dict_metadata and storage_data, each a dict of stand-ins. What else there is, is not looked at."""
    with no_collection():
        found = _Unpickler(io.BytesIO(_with_checked_keys(content))).load()
    if type(found) is not _Metadata:
        raise _WrongError("is no description of a checkpoint; it was not written by megatrain")
    if type(found.tensors) is not _Dict or type(found.storage) is not _Dict:
        raise _WrongError("has no storage description; it was not written by megatrain")
    return found.tensors, found.storage


def _with_checked_keys(content: bytes) -> bytes:
    """The same pickle with each dict a `_Dict`, and without frames, whose lengths this changes.

    Raises _WrongError where it has opcodes that are not expected.
    """
    pieces: list[bytes] = []
    at = 0
    while at < len(content):
        match = _FIXED.match(content, at)
        assert match is not None, "it matches nothing as well"
        for others in _UP_TO_DICT.finditer(match[0]):
            pieces.append(others[1])
            if others[2]:
                pieces.append(_PERSISTENT)
        at = match.end()
        if at == len(content):
            break
        width = _SIZED.get(content[at])
        if width is None:
            what = f"the pickle opcode {content[at]:#04x}"
            raise _WrongError(f"has {what}, which no checkpoint of megatrain needs; refused")
        end = at + 1 + width + int.from_bytes(content[at + 1 : at + 1 + width], "little")
        pieces.append(content[at:end])
        at = end
    return b"".join(pieces)


class _Dict(dict[Any, Any]):
    """A dict whose keys are text or indexes. A hash of tuples in tuples could take for ever, or more stack than there
    is, and an unpickler hashes whatever it is told to.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not _Index and type(key) is not str:
            raise _WrongError(f"has a key of type {type(key).__name__}; it was not written by megatrain")
        super().__setitem__(key, value)


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> _Dict:
        """Stands where the pickle had an empty dict; it cannot ask for this itself."""
        return _Dict()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            text = f"asks for {module}.{name}, which no checkpoint of megatrain needs; refused"
            raise _WrongError(text) from None


class _StandIn:
    """What an unpickled object becomes. `__setstate__` of its own, so that nothing can set attributes of a class.

    Of the two that there are millions of, metadata_writer.py writes calls, which are shorter; torch writes states.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""


class Chunk(_StandIn):
    __slots__ = ("offsets", "sizes")
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.offsets, self.sizes = state["offsets"], state["sizes"]


class Place(_StandIn):
    """Where a chunk of some sizes lies: a file's name, and the bytes of it."""

    __slots__ = ("file", "length", "offset", "sizes")
    file: str
    offset: int
    length: int
    sizes: tuple[int, ...]

    def __init__(self, file: str, offset: int, length: int) -> None:
        self.file, self.offset, self.length = file, offset, length

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.file, self.offset, self.length = state["relative_path"], state["offset"], state["length"]
        if state.get("transform_descriptors"):
            raise _WrongError("has transformed tensors, which no checkpoint of megatrain has; refused")


class _Index(_StandIn):
    __slots__ = ("name", "offsets")
    name: str
    offsets: tuple[int, ...] | None

    def __init__(self, name: str, offsets: tuple[int, ...]) -> None:
        self.name, self.offsets = name, offsets

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.offsets = state["fqn"], state["offset"]


class _Tensor(_StandIn):
    __slots__ = ("chunks", "properties", "size")
    properties: Any
    size: Any
    chunks: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.properties, self.size, self.chunks = state["properties"], state["size"], state["chunks"]


class _Properties(_StandIn):
    __slots__ = ("dtype", "layout")
    dtype: Any
    layout: Any

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype, self.layout, *_ = state


class _Metadata(_StandIn):
    __slots__ = ("storage", "tensors")
    tensors: Any
    storage: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tensors, self.storage = state["state_dict_metadata"], state["storage_data"]


class _Bytes(_StandIn):
    """A pickled object instead of a tensor."""


class _Ignored(_StandIn):
    def __new__(cls, *arguments: Any) -> "_Ignored":
        return super().__new__(cls)


class _Size(_StandIn):
    def __new__(cls, sizes: Any) -> Any:
        if type(sizes) is not tuple or len(sizes) > _DIMENSIONS:
            raise _WrongError(f"has a size that is no tuple of at most {_DIMENSIONS} integers")
        return sizes


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch.distributed.checkpoint.metadata", "Metadata"): _Metadata,
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"): _Index,
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): _Tensor,
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"): _Bytes,
    ("torch.distributed.checkpoint.metadata", "TensorProperties"): _Properties,
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"): Chunk,
    ("torch.distributed.checkpoint.metadata", "StorageMeta"): _Ignored,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _Ignored,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): Place,
    ("torch.serialization", "_get_layout"): _Ignored,
    ("torch", "Size"): _Size,
    ("torch", "strided"): "strided",
    **{("torch", name): name for name in ITEM_BYTES},
}


def _places_by_tensor(
    tensors: dict[str, Any], storage: dict[Any, Any], files: Mapping[str, int]
) -> dict[str, dict[tuple[int, ...], Place]]:
    """Where each tensor's chunks lie, checked against the files; as many places as all tensors together have chunks."""
    chunks = 0
    for name, entry in tensors.items():
        if type(name) is not str or type(entry) is not _Tensor:
            kind = "a pickled object" if type(entry) is _Bytes else "no tensor"
            raise _WrongError(f"{str(name)[:100]!r} is {kind}; a checkpoint of megatrain holds tensors only; refused")
        if type(entry.chunks) is not list:
            raise _WrongError(f"{name}: has no list of chunks")
        chunks += len(entry.chunks)
    if chunks != len(storage):
        raise _WrongError(f"its tensors have {chunks:,} chunks, and {len(storage):,} are stored")
    found: dict[str, dict[tuple[int, ...], Place]] = {}
    for index, place in storage.items():
        if type(index) is not _Index or type(place) is not Place or type(index.name) is not str:
            raise _WrongError("has a storage description that is not DCP's")
        if index.offsets is None or not _are_integers(index.offsets):
            raise _WrongError(f"{index.name}: has a chunk whose offsets are not integers")
        if type(place.file) is not str or place.file not in files:
            file = repr(place.file[:100]) if type(place.file) is str else f"a {type(place.file).__name__}"
            raise _WrongError(f"{index.name}: is said to lie in {file}, which is no data file here")
        if type(place.offset) is not int or type(place.length) is not int or place.offset < 0 or place.length <= 0:
            raise _WrongError(f"{index.name}: has no valid place in {place.file}")
        if place.offset + place.length > files[place.file]:
            raise _WrongError(f"{index.name}: lies beyond the end of {place.file}")
        found.setdefault(index.name, {})[index.offsets] = place
    return found


def _check_apart(places: Collection[Place], files: list[str]) -> None:
    """Bytes that two chunks share would let a small file hold tensors of any size."""
    numbers = {file: number for number, file in enumerate(files)}
    count = len(places)
    file = np.fromiter((numbers[place.file] for place in places), dtype=np.int64, count=count)
    begin = np.fromiter((place.offset for place in places), dtype=np.int64, count=count)
    end = begin + np.fromiter((place.length for place in places), dtype=np.int64, count=count)
    order = np.lexsort((begin, file))
    shared = (file[order][1:] == file[order][:-1]) & (begin[order][1:] < end[order][:-1])
    if shared.any():
        raise _WrongError(f"{files[file[order][1:][shared][0]]}: two chunks are said to share bytes of it")


def _are_integers(value: Any) -> bool:
    """Whether it is a tuple of at most as many integers as a tensor has dimensions."""
    return type(value) is tuple and len(value) <= _DIMENSIONS and all(type(number) is int for number in value)


# By a list of chunks, the tensor's shape and its numbers' width: offsets, sizes and bytes of each. Tensors that are cut
# alike share one list, which is looked through once.
_Boxes = dict[tuple[int, tuple[int, ...], int], list[tuple[tuple[int, ...], tuple[int, ...], int]]]


def _stored(name: str, entry: Any, places: dict[tuple[int, ...], Place], known: _Boxes) -> StoredTensor:
    shape, properties = entry.size, entry.properties
    if type(properties) is not _Properties or type(properties.dtype) is not str or properties.dtype not in ITEM_BYTES:
        raise _WrongError(f"{name}: has no dtype of {', '.join(ITEM_BYTES)}")
    if type(shape) is not tuple or not all(type(size) is int and 0 < size <= _LARGEST for size in shape):
        raise _WrongError(f"{name}: has no valid shape")
    if math.prod(size + 1 for size in shape) > _LARGEST:
        raise _WrongError(f"{name}: has a shape that is too large: {shape}")
    width = ITEM_BYTES[properties.dtype]
    key = id(entry.chunks), shape, width
    if key not in known:
        known[key] = _boxes(name, shape, width, entry.chunks)
    for offsets, sizes, number_bytes in known[key]:
        place = places.get(offsets)
        if place is None:
            raise _WrongError(f"{name}: its chunk at {offsets} is not stored")
        if not 0 <= place.length - number_bytes <= _SAVED_AROUND:
            raise _WrongError(f"{name}: its chunk at {offsets} has not the size that is stored for it")
        place.sizes = sizes
    return StoredTensor(properties.dtype, shape, entry.chunks, places)


def _boxes(name: str, shape: tuple[int, ...], width: int, chunks: list[Any]) -> list[tuple[Any, Any, int]]:
    if not all(type(chunk) is Chunk for chunk in chunks):
        raise _WrongError(f"{name}: has chunks that are not DCP's")
    if not covers_exactly(shape, [c.offsets for c in chunks], [c.sizes for c in chunks]):
        raise _WrongError(f"{name}: its chunks do not cover it exactly")
    return [(c.offsets, c.sizes, width * math.prod(c.sizes)) for c in chunks]


def covers_exactly(shape: tuple[int, ...], offsets: list[Any], sizes: list[Any]) -> bool:
    """Whether boxes cover a tensor, each element once.

    A box is determined by its corners, each with the sign of an inclusion-exclusion sum; where boxes meet, corners
    cancel. So the cover is exact if and only if the tensor's own corners are all that is left: n log n, where comparing
    boxes with each other takes n².
    """
    if not shape:
        return offsets == [()] == sizes
    if not all(_are_integers(box) and len(box) == len(shape) for box in (*offsets, *sizes)):
        return False
    try:
        starts, lengths = np.array(offsets), np.array(sizes)
    except ValueError:  # sequences of several lengths
        return False
    if starts.shape != (len(offsets), len(shape)) or not offsets:
        return False
    if starts.dtype != np.int64 or lengths.dtype != np.int64 or lengths.shape != starts.shape:
        return False
    whole = np.array(shape, dtype=np.int64)
    if (starts < 0).any() or (lengths < 1).any() or (lengths > whole).any() or (starts > whole - lengths).any():
        return False
    strides = np.array([math.prod(size + 1 for size in shape[dim + 1 :]) for dim in range(len(shape))], dtype=np.int64)
    mine, signs = _corners(starts, lengths, strides)
    theirs, their_signs = _corners(np.zeros((1, len(shape)), dtype=np.int64), whole[None], strides)
    places, inverse = np.unique(np.concatenate([mine, theirs]), return_inverse=True)
    sums = np.bincount(inverse, weights=np.concatenate([signs, -their_signs]), minlength=len(places))
    return not sums.any()


def _corners(starts: Any, lengths: Any, strides: Any) -> tuple[Any, Any]:
    """The flat positions of all corners of boxes, and their signs."""
    positions, signs = np.zeros((len(starts), 1), dtype=np.int64), np.ones(1)
    for dim, stride in enumerate(strides):
        near, far = starts[:, dim, None] * stride, (starts[:, dim, None] + lengths[:, dim, None]) * stride
        positions = np.concatenate([positions + near, positions + far], axis=1)
        signs = np.concatenate([signs, -signs])
    return positions.ravel(), np.tile(signs, len(starts))
