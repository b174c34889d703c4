"""Checkpoints as somebody who means harm would write them: a real one, then changed where it lies."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, write_manifest
from megatrain.checkpoint.planner import CompactSavePlanner
from megatrain.checkpoint.storage import HashingWriter
from megatrain.run.directory import MANIFEST, parse_step


class Calls:
    """Unpickled by an ordinary unpickler, calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touches(path: Path) -> Calls:
    """Leaves a file behind when it is unpickled."""
    return Calls(eval, f"__import__('pathlib').Path({str(path)!r}).touch()")


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> HashingWriter:
    writer = HashingWriter(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(tensors, storage_writer=writer, planner=CompactSavePlanner(), no_dist=True)
    return writer


def change_metadata(folder: Path, change: Callable[[Metadata], Any]) -> None:
    """Unpickle `.metadata`, change it, and write it back; what `change` returns instead, if it returns something."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    other = change(metadata)
    path.write_bytes(other if isinstance(other, bytes) else pickle.dumps(metadata if other is None else other))


def sign(folder: Path) -> None:
    """A manifest that vouches for the files as they are."""
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    files = {name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in names}
    step = parse_step(folder) or 0
    write_manifest(folder, Manifest(step=step, saved_at="", world_size=1, layout="", version="", files=files))
