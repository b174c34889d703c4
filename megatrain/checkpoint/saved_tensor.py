"""A tensor as `torch.save` writes it, read without unpickling: the pickle in its archive must be the one form that a
plain tensor has. Even torch's restricted unpickler can be kept busy for ever, by the hash of tuples that share parts.
"""

import math
import re
import zipfile
from typing import IO

import torch
from torch import Tensor

_INT = rb"(?:K.|M..|J.{4}|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"
_TUPLE = rb"(?:\)|%(i)b{1}\x85q.|%(i)b{2}\x86q.|%(i)b{3}\x87q.|\(%(i)b{4,8}tq.)" % {b"i": _INT}
_PLAIN_TENSOR = re.compile(
    rb"\x80\x02ctorch\._utils\n_rebuild_tensor_v2\nq.\(\(X\x07\0\0\0storageq.ctorch\n(?P<storage>\w{1,20})Storage\nq."
    rb"X\x01\0\0\x000q.X\x03\0\0\0cpuq.%(int)btq.Q(?P<offset>%(int)b)(?P<sizes>%(tuple)b)(?P<strides>%(tuple)b)"
    rb"\x89ccollections\nOrderedDict\nq.\)Rq.tq.Rq.\." % {b"int": _INT, b"tuple": _TUPLE},
    re.DOTALL,
)
_INTS = re.compile(rb"K(.)|M(..)|J(.{4})|\x8a(?:\x05(.{5})|\x06(.{6})|\x07(.{7})|\x08(.{8}))|q.", re.DOTALL)
_DTYPES = {b"Float": torch.float32, b"BFloat16": torch.bfloat16, b"Half": torch.float16}


def read_saved_tensor(file: IO[bytes], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor in an archive of `torch.save`, on the CPU; no more memory is taken than the archive has bytes.

    Raises:
        ValueError: it is something else than a plain tensor of this dtype and shape.
        zipfile.BadZipFile, RuntimeError, …: the archive is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        size = file.seek(0, 2)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        if not stored or sum(entry.file_size for entry in archive.infolist()) > size:
            raise ValueError("it is larger than the file has bytes for it")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ValueError("its numbers are not little-endian")
        form = _PLAIN_TENSOR.fullmatch(archive.read(entries["data.pkl"])) if "data.pkl" in entries else None
        if form is None:
            raise ValueError("it is no plain tensor on the CPU")
        if _DTYPES.get(form["storage"]) != dtype or _ints(form["sizes"]) != list(shape):
            raise ValueError(f"it is no {str(dtype).removeprefix('torch.')} tensor of {shape}, as .metadata has it")
        if entries["data/0"].file_size != dtype.itemsize * math.prod(shape):
            raise ValueError("its numbers are not as many as its shape says")
        numbers = bytearray(archive.read(entries["data/0"]))  # a copy, which may be written to
    (offset,) = _ints(form["offset"])
    return torch.frombuffer(numbers, dtype=dtype).as_strided(shape, _ints(form["strides"]), offset)


def _ints(content: bytes) -> list[int]:
    """The integers among these opcodes."""
    found = (match for match in _INTS.finditer(content.lstrip(b"(")) if match.lastindex)
    return [int.from_bytes(match[match.lastindex or 0], "little", signed=len(match[0]) > 3) for match in found]
