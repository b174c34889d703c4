"""The safetensors files of a model in Hugging Face's format: which tensors they hold and where, from their headers
alone, read without trust. No torch, so that the launcher can refuse what a rank could not read.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, RootModel

from megatrain.base.errors import CheckpointError
from megatrain.base.files import VALUES_LIMIT, open_regular, parse_json, parse_model, read_model, reason, recognise
from megatrain.config import ModelSection
from megatrain.huggingface.names import count, drawn, may_lack, recognised, wholes_of_base

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_LENGTH_BYTES = 8  # at a file's start: how long the JSON is that describes the rest
_HEADER_LIMIT = 16 << 20  # bytes; a tensor takes about 120
_INDEX_LIMIT = 64 << 20
_SHOWN = 20  # of what is wrong
_TOO_MANY = 10_000  # tensors that are missing
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # what weights may be stored as

_Offset = Annotated[int, Field(ge=0, le=1 << 62)]


class _Tensor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    dtype: Annotated[str, Field(max_length=16)]
    shape: Annotated[list[_Offset], Field(max_length=8)]
    data_offsets: Annotated[list[_Offset], Field(min_length=2, max_length=2)]


class _Header(RootModel[dict[str, _Tensor]]):
    pass


class _Index(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    weight_map: dict[str, str]


class _Place(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(path: Path, config: ModelSection) -> dict[str, Path]:
    """The safetensors file of each tensor of the model, by the name that it has in there. Reads headers only. A
    classifier has a head of its own, and layers below it that a base may lack.

    Of the bare model's files those of the head are left out: see `names.drawn`.

    Raises:
        CheckpointError: there are none; one is damaged, cut short, or of another save; a tensor is missing, has another
            shape, is stored as something other than floating-point numbers, or is not of this architecture.
    """
    found = _tensors(path)
    expected = count(config)
    if expected > len(found) + _TOO_MANY:  # before a list as long as the configuration says is made
        raise CheckpointError(
            f"{path}: its weights are {len(found):,} tensors; the model section says "
            f"{expected:,} ({config.num_hidden_layers:,} layers)"
        )
    wanted = wholes_of_base(config)
    stored, unknown = recognised(found, wanted, config)
    absent = may_lack(config) | set(drawn(found, wanted, config))
    wrong = [f"{path}: {name}: is missing" for name in wanted.keys() - stored.keys() - absent]
    for full, name in stored.items():
        shape, place = wanted[full].shape, found[name]
        if place.shape != shape:
            wrong.append(f"{path}: {name}: has shape {place.shape}, the model section says {shape}")
        elif place.dtype not in _ITEM_BYTES:
            text = f"is stored as {place.dtype}; weights are read as {', '.join(_ITEM_BYTES)}"
            wrong.append(f"{place.file}: {name}: {text}. A quantized model is not read: take its original.")
    wrong += [f"{found[name].file}: {name[:200]}: is not a weight of this architecture" for name in unknown]
    if wrong:
        more = [f"{path}: and {len(wrong) - _SHOWN:,} more like these"] if len(wrong) > _SHOWN else []
        raise CheckpointError("\n".join([*sorted(wrong)[:_SHOWN], *more]))
    return {name: found[name].file for name in stored.values()}


def _tensors(folder: Path) -> dict[str, _Place]:
    """Every tensor of the model's files; of a sharded model, those that its index names."""
    index = _index(folder)
    files = {folder / name for name in index.values()} if index else _files_without_index(folder)
    found: dict[str, _Place] = {}
    for file in sorted(files):
        for name, tensor in _header(file).items():
            if name in found:
                raise CheckpointError(
                    f"{folder}: {name[:200]}: is in {found[name].file.name} and in {file.name}: "
                    "files of two saves are mixed here. Copy the model again, into an empty folder."
                )
            if index and index.get(name) != file.name:
                where = index.get(name, "no file")
                raise CheckpointError(
                    f"{file}: holds {name[:200]}, which {WEIGHTS_INDEX} places in {where}: "
                    "files of two saves are mixed here. Copy the model again, into an empty folder."
                )
            found[name] = _Place(file, tensor.dtype, tuple(tensor.shape))
    if index and (absent := sorted(index.keys() - found.keys())):
        raise CheckpointError(f"{folder / index[absent[0]]}: has no tensor {absent[0][:200]}, as {WEIGHTS_INDEX} says")
    return found


def _index(folder: Path) -> dict[str, str]:
    """File of each tensor, where the model is in several files; else empty."""
    file = folder / WEIGHTS_INDEX
    if not file.exists():
        return {}
    if (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder}: holds {WEIGHTS} and {WEIGHTS_INDEX}, so it is not clear which weights are meant. Remove one."
        )
    places = read_model(file, _Index, error=CheckpointError, limit=_INDEX_LIMIT).weight_map
    for name in set(places.values()):
        if not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"{file}: weight_map: {name[:200]!r}: must be a safetensors file beside it")
    if not places:
        raise CheckpointError(f"{file}: weight_map: names no tensor")
    return places


def _files_without_index(folder: Path) -> set[Path]:
    try:
        names = sorted(file.name for file in folder.iterdir() if file.suffix == ".safetensors")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}") from None
    if not names:
        raise CheckpointError(
            f"{folder}: has no *.safetensors. Weights in pickles (*.bin) are not read: save them anew with "
            "transformers, `model.save_pretrained(folder)`."
        )
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if WEIGHTS in names and not shards:
        return {folder / WEIGHTS}
    if shards and (WEIGHTS in names or len({match[2] for match in shards}) > 1):
        text = ", ".join(names[:5])
        raise CheckpointError(f"{folder}: {text}: are files of several saves. Copy the model again.")
    if shards and (absent := set(range(1, int(shards[0][2]) + 1)) - {int(match[1]) for match in shards}):
        missing = f"model-{min(absent):05d}-of-{shards[0][2]}.safetensors"
        raise CheckpointError(f"{folder / missing}: is missing. Copy the model again.")
    return {folder / match[0] for match in shards} or {folder / name for name in names}


def _header(file: Path) -> dict[str, _Tensor]:
    """What a safetensors file says of its tensors; they lie one after the other, and fill it to its last byte."""
    with open_regular(file, CheckpointError) as opened:
        try:
            size = os.fstat(opened.fileno()).st_size
            start = opened.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < _LENGTH_BYTES or length > min(_HEADER_LIMIT, size - _LENGTH_BYTES):
                raise CheckpointError(f"{file}: {_no_header(file, start + opened.read(64), length, size)}")
            text = opened.read(length)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {reason(error)}") from None
    where = f"{file}: is damaged, or not a safetensors file: its header"
    value = parse_json(text, where, CheckpointError, values=VALUES_LIMIT)
    if isinstance(value, dict):
        value.pop("__metadata__", None)
    tensors = parse_model(_Header, value, where, CheckpointError).root
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, after = tensor.data_offsets
        each = _ITEM_BYTES.get(tensor.dtype)
        if begin != end or after < begin or (each and after - begin != each * math.prod(tensor.shape)):
            wrong = f"is at bytes {begin:,} to {after:,}, after {end:,}, with shape {tensor.shape} of {tensor.dtype}"
            raise CheckpointError(f"{file}: is damaged, or not a safetensors file: {name[:200]} {wrong}")
        end = after
    if size != _LENGTH_BYTES + length + end:
        expected = _LENGTH_BYTES + length + end
        raise CheckpointError(f"{file}: is damaged or cut short: it has {size:,} bytes, its header says {expected:,}")
    return tensors


def _no_header(file: Path, head: bytes, length: int, size: int) -> str:
    if known := recognise(head):
        return f"is not a safetensors file: it is {known}"
    return (
        "is damaged, or not a safetensors file: its first 8 bytes say that a header of "
        f"{length:,} bytes follows, of {size:,} in all (at most {_HEADER_LIMIT:,} are read)"
    )
