"""Reading tokens that Megatron-LM prepared: `NAME.idx` beside `NAME.bin`.

The layout is that of `megatron/core/datasets/indexed_dataset.py`, all little-endian:

    NAME.idx    magic "MMIDIDX\\0\\0", uint64 version 1, uint8 code of the token dtype,
                uint64 sequences n, uint64 document bounds m,
                int32 [n] tokens of each sequence, int64 [n] byte offset of each in NAME.bin,
                int64 [m] first sequence of each document, n the last; then perhaps int8 [n] modes, not read
    NAME.bin    the tokens
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatrain.errors import DataError

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
    if not data_file.is_file():
        raise DataError(f"{data_file}: is missing beside {index_file.name}")
    wanted = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize if len(lengths) else 0
    if data_file.stat().st_size < wanted:
        raise DataError(f"{data_file}: has {data_file.stat().st_size:,} bytes, its index needs {wanted:,}: cut off")
    with open(data_file, "rb") as file:
        for first, last in zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True):
            parts = []
            for sequence in range(first, last):
                file.seek(int(offsets[sequence]))
                parts.append(np.frombuffer(file.read(int(lengths[sequence]) * dtype.itemsize), dtype=dtype))
            yield np.concatenate([np.empty(0, np.int64), *(part.astype(np.int64) for part in parts)]), file.tell()


def _read_index(file: Path) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], np.dtype]:
    data = file.read_bytes()
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
    if bounds and (documents[0] != 0 or documents[-1] > sequences or (np.diff(documents) < 0).any()):
        raise DataError(f"{file}: is damaged: its documents are not ascending runs of its {sequences:,} sequences")
    return lengths, offsets, documents, np.dtype(_DTYPES[code])
