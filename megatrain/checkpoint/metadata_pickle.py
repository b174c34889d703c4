"""Reads `.metadata`, DCP's pickled table of contents, as data: nothing that it names is imported or called. No torch.

A pickle can run code, or fill the memory from ten bytes. So its opcodes are looked through first, and each class that
DCP writes is stood in for by one of ours.
"""

import io
import pickle
import re
from typing import Any

from megatrain.base.garbage import no_collection
from megatrain.checkpoint.coverage import MOST_DIMENSIONS

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# The opcodes that pickle protocols 4 and 5 need for DCP's metadata. What is missing fetches by index (PUT allocates as
# much as it is told), copies, or belongs to older protocols. Strings and long integers are followed by their bytes.
_OTHERS = rb"[\x94)\](useabtR.0N\x81\x85\x86\x87\x88\x89\x93]|[Kh\x80].|M..|[Jj].{4}|\x8a\x08.{8}"
_FRAME = rb"\x95.{8}"
_FIXED = re.compile(rb"(?:\}|" + _FRAME + rb"|" + _OTHERS + rb")*+", re.DOTALL)
_UP_TO_DICT = re.compile(rb"((?:" + _OTHERS + rb")*+)(?:(\})|" + _FRAME + rb")?", re.DOTALL)
_PERSISTENT = b"NQ"  # NONE, BINPERSID: what `persistent_load` makes
_SIZED = {0x8C: 1, ord("X"): 4, 0x8A: 1}  # bytes that hold the length of what follows


class NotOursError(Exception):
    """The text says what is wrong with the file."""


def parse_metadata(content: bytes) -> tuple[dict[str, Any], dict[Any, Any]]:
    """state_dict_metadata and storage_data, each a dict of stand-ins. What else there is, is not looked at."""
    with no_collection():
        found = _Unpickler(io.BytesIO(_with_checked_keys(content))).load()
    if type(found) is not _Metadata:
        raise NotOursError("is no description of a checkpoint; it was not written by megatrain")
    if type(found.tensors) is not _Dict or type(found.storage) is not _Dict:
        raise NotOursError("has no storage description; it was not written by megatrain")
    return found.tensors, found.storage


def _with_checked_keys(content: bytes) -> bytes:
    """The same pickle with each dict a `_Dict`, and without frames, whose lengths this changes.

    Raises NotOursError where it has opcodes that are not expected.
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
            raise NotOursError(f"has {what}, which no checkpoint of megatrain needs; refused")
        end = at + 1 + width + int.from_bytes(content[at + 1 : at + 1 + width], "little")
        pieces.append(content[at:end])
        at = end
    return b"".join(pieces)


class _Dict(dict[Any, Any]):
    """A dict whose keys are text or indexes. A hash of tuples in tuples could take for ever, or more stack than there
    is, and an unpickler hashes whatever it is told to.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is not IndexEntry and type(key) is not str:
            raise NotOursError(f"has a key of type {type(key).__name__}; it was not written by megatrain")
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
            raise NotOursError(text) from None


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


class ChunkLocation(_StandIn):
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
            raise NotOursError("has transformed tensors, which no checkpoint of megatrain has; refused")


class IndexEntry(_StandIn):
    __slots__ = ("name", "offsets")
    name: str
    offsets: tuple[int, ...] | None

    def __init__(self, name: str, offsets: tuple[int, ...]) -> None:
        self.name, self.offsets = name, offsets

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.name, self.offsets = state["fqn"], state["offset"]


class TensorEntry(_StandIn):
    __slots__ = ("chunks", "properties", "size")
    properties: Any
    size: Any
    chunks: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.properties, self.size, self.chunks = state["properties"], state["size"], state["chunks"]


class PropertiesEntry(_StandIn):
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


class BytesEntry(_StandIn):
    """A pickled object instead of a tensor."""


class _Ignored(_StandIn):
    def __new__(cls, *arguments: Any) -> "_Ignored":
        return super().__new__(cls)


class _Size(_StandIn):
    def __new__(cls, sizes: Any) -> Any:
        if type(sizes) is not tuple or len(sizes) > MOST_DIMENSIONS:
            raise NotOursError(f"has a size that is no tuple of at most {MOST_DIMENSIONS} integers")
        return sizes


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch.distributed.checkpoint.metadata", "Metadata"): _Metadata,
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"): IndexEntry,
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): TensorEntry,
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"): BytesEntry,
    ("torch.distributed.checkpoint.metadata", "TensorProperties"): PropertiesEntry,
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"): Chunk,
    ("torch.distributed.checkpoint.metadata", "StorageMeta"): _Ignored,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): _Ignored,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): ChunkLocation,
    ("torch.serialization", "_get_layout"): _Ignored,
    ("torch", "Size"): _Size,
    ("torch", "strided"): "strided",
    **{("torch", name): name for name in ITEM_BYTES},
}
