"""Writes `.metadata`, DCP's pickled table of contents, which any reader of DCP can read.

It has an entry per chunk of each tensor. What many entries share (a list of chunks, a name, offsets) is pickled once
and referred to; the entries of `storage_data`, millions of a large checkpoint, are not made as objects at all: they are
opcodes in an array, all of one length, whose numbers are filled in column by column.
"""

import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from megatrain.base.garbage import no_collection


class RankChunks(NamedTuple):
    """What one rank writes, in the order of its plan."""

    names: NDArray[np.int32]  # places in PlannedChunks.names
    offsets: NDArray[np.int32]  # places in PlannedChunks.offsets


class PlannedChunks(NamedTuple):
    """What all ranks write. The objects are those of `state_dict_metadata`, so that they are pickled once."""

    names: list[str]
    offsets: list[torch.Size]
    ranks: list[RankChunks]


class WrittenChunks(NamedTuple):
    """Where one rank's chunks lie in its file, in the order of its plan."""

    file: str  # empty where the rank has none
    places: bytes

    @classmethod
    def of(cls, file: str, offsets: Sequence[int], lengths: Sequence[int]) -> "WrittenChunks":
        steps = np.diff(np.array(offsets, dtype=np.int64), prepend=0)  # which repeat, where offsets do not
        return cls(file, zlib.compress(np.stack([steps, np.array(lengths, dtype=np.int64)]).tobytes()))

    def offsets_and_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        steps, lengths = np.frombuffer(zlib.decompress(self.places), dtype=np.int64).reshape(2, -1)
        return steps.cumsum(), lengths


class _StorageData(NamedTuple):
    planned: PlannedChunks
    written: list[WrittenChunks]


def write_metadata(metadata: Metadata, written: list[WrittenChunks], file: Any) -> None:
    """Write to a file and bring it to the disk.

    Args:
        metadata: whose `storage_data` is a PlannedChunks.
        written: by rank.
    """
    metadata.storage_data = _StorageData(metadata.storage_data, written)
    with no_collection():
        _MetadataPickler(file, protocol=4).dump(metadata)
    os.fsync(file.fileno())


# MetadataIndex(name, offset): _StorageInfo(file, offset, length). BINGET fetches what was pickled before, by number.
_GET, _LONG, _CALL_2, _CALL_3 = pickle.LONG_BINGET, pickle.LONG1 + b"\x08", b"\x86R", b"\x87R"
_ENTRY: list[tuple[bytes, str, str]] = [
    (_GET, "index_class", "<u4"),
    (_GET, "name", "<u4"),
    (_GET, "chunk", "<u4"),
    (_CALL_2 + _GET, "info_class", "<u4"),
    (_GET, "file", "<u4"),
    (_LONG, "offset", "<i8"),
    (_LONG, "length", "<i8"),
    (_CALL_3, "", ""),
]
_ENTRY_TYPE = np.dtype(
    [part for code, field, kind in _ENTRY for part in ((f"before {field}", f"V{len(code)}"), (field, kind)) if part[1]]
)


class _MetadataPickler(pickle._Pickler):
    write: Callable[[bytes], Any]
    save: Callable[[Any], None]
    memo: dict[int, tuple[int, Any]]  # by identity: its number in the pickle
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def _save_storage_data(self, data: _StorageData) -> None:
        files = [written.file for written in data.written]
        for shared in (MetadataIndex, _StorageInfo, *files):
            self.save(shared)
            self.write(pickle.POP)
        names = np.array([self._number(name) for name in data.planned.names], dtype=np.uint32)
        chunks = np.array([self._number(offsets) for offsets in data.planned.offsets], dtype=np.uint32)
        self.write(pickle.EMPTY_DICT)
        for rank, written in zip(data.planned.ranks, data.written, strict=True):
            entries = np.zeros(len(rank.names), dtype=_ENTRY_TYPE)
            for code, field, _ in _ENTRY:
                entries[f"before {field}"] = np.void(code)
            entries["index_class"], entries["info_class"] = self._number(MetadataIndex), self._number(_StorageInfo)
            entries["name"], entries["chunk"] = names[rank.names], chunks[rank.offsets]
            entries["file"] = self._number(written.file)
            entries["offset"], entries["length"] = written.offsets_and_lengths()
            self.write(pickle.MARK)
            self.write(entries.tobytes())
            self.write(pickle.SETITEMS)

    dispatch[_StorageData] = _save_storage_data  # type: ignore[assignment]

    def _number(self, shared: Any) -> int:
        return self.memo[id(shared)][0]
