"""Reading tokens that Megatron-LM prepared: `NAME.idx` beside `NAME.bin`.

The layout is that of `megatron/core/datasets/indexed_dataset.py`, all little-endian:

    NAME.idx    magic "MMIDIDX\\0\\0", uint64 version 1, uint8 code of the token dtype,
                uint64 sequences n, uint64 document bounds m,
                int32 [n] tokens of each sequence, int64 [n] byte offset of each in NAME.bin,
                int64 [m] first sequence of each document, n the last; then perhaps int8 [n] modes, not read
    NAME.bin    the tokens
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.base.files import open_regular, read_bytes

_INDEX_BYTES = 1 << 36  # at most: five billion sequences
_MOST_TOKENS = 1 << 28  # of a document: 2 GiB of int64
_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating-point


def read_megatron(index_file: Path) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Each document's tokens, int64 [n], and the bytes of NAME.bin read with it.

    Raises:
        DataError: the index is not of this layout, or the tokens are missing or cut off.
    """
    data_file = index_file.with_suffix(".bin")
    lengths, offsets, documents, dtype = _read_index(index_file)
    if not data_file.exists():
        raise DataError(f"{data_file}: is missing beside {index_file.name}")
    with open_regular(data_file, DataError) as file:
        _require_inside(lengths, offsets, dtype.itemsize, index_file, os.fstat(file.fileno()).st_size)
        for number, (first, last) in enumerate(zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True)):
            total = int(lengths[first:last].sum(dtype=np.int64))
            if total > _MOST_TOKENS:
                raise DataError(
                    f"{index_file} document {number}: has {total:,} tokens; at most {_MOST_TOKENS:,} are read as one"
                )
            parts = []
            for sequence in range(first, last):
                file.seek(int(offsets[sequence]))
                parts.append(np.fromfile(file, dtype=dtype, count=int(lengths[sequence])))
            tokens = np.concatenate([np.empty(0, np.int64), *(part.astype(np.int64) for part in parts)])
            if len(tokens) != total:
                raise DataError(f"{data_file}: was cut off while it was read")
            yield tokens, file.tell()


def _require_inside(
    lengths: NDArray[np.int32], offsets: NDArray[np.int64], itemsize: int, index_file: Path, size: int
) -> None:
    """Every sequence has a length and lies within the `size` bytes of NAME.bin; together they are no more than that."""
    if (wrong := np.flatnonzero(lengths < 0)).size:
        raise DataError(f"{index_file}: is damaged: sequence {wrong[0]} has {lengths[wrong[0]]} tokens")
    data_file = index_file.with_suffix(".bin")
    outside = (offsets < 0) | (offsets > size - lengths.astype(np.int64) * itemsize)
    if (wrong := np.flatnonzero(outside)).size:
        first = wrong[0]
        raise DataError(
            f"{data_file}: has {size:,} bytes; by its index, sequence {first} has {lengths[first]:,} tokens of "
            f"{itemsize} bytes from byte {offsets[first]:,} on: cut off, or the index is damaged"
        )
    if (total := int(lengths.sum(dtype=np.int64)) * itemsize) > size:
        raise DataError(f"{index_file}: is damaged: its sequences have {total:,} bytes, {data_file.name} has {size:,}")


def _read_index(file: Path) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], np.dtype]:
    data = read_bytes(file, limit=_INDEX_BYTES, error=DataError)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise DataError(f"{file}: is not an index of Megatron's indexed dataset (it should begin with MMIDIDX)")
    _, version, code, sequences, bounds = _HEADER.unpack_from(data)
    if version != 1 or code not in _DTYPES:
        raise DataError(
            f"{file}: version {version}, dtype code {code}: only version 1 with whole-number tokens is read"
        )
    if len(data) < _HEADER.size + 12 * sequences + 8 * bounds:
        raise DataError(f"{file}: is cut off: it announces {sequences:,} sequences in {bounds:,} document bounds")
    lengths = np.frombuffer(data, dtype="<i4", count=sequences, offset=_HEADER.size)
    offsets = np.frombuffer(data, dtype="<i8", count=sequences, offset=_HEADER.size + 4 * sequences)
    documents = np.frombuffer(data, dtype="<i8", count=bounds, offset=_HEADER.size + 12 * sequences)
    if bounds and (documents[0] != 0 or documents[-1] > sequences or (documents[1:] < documents[:-1]).any()):
        raise DataError(f"{file}: is damaged: its documents are not ascending runs of its {sequences:,} sequences")
    return lengths, offsets, documents, np.dtype(_DTYPES[code])
