"""Packed examples in a run's folder, encoded once by the launcher and memory-mapped by every rank.

RUN/examples/<fingerprint>/
    tokens.npy        int32 [rows, S + 1]
    is_target.npy     bool [rows, S + 1]
    ends.npy          int32 [packed examples]: of the examples of all rows, one row after the other
    first.npy         int64 [rows + 1]: where the ends of each row begin
    examples.json     what became of each file, and the digest of the rows; written last

The fingerprint is of everything that the rows depend on: files (by size and time of change), tokenizer, template, task,
lengths, and the version of this package. Where it has changed, ranks read and encode the files themselves.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from megatrain.base.files import write_json
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import ExampleSet, FileReport
from megatrain.data.examples.identity import FORMAT
from megatrain.data.examples.packing import PackedRow, digest
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.architecture import ModelSection
from megatrain.tasks.registry import TaskSection
from megatrain.version import __version__

_ARRAYS = {"tokens": np.int32, "is_target": np.bool_, "ends": np.int32, "first": np.int64}
_RECORD = "examples.json"


class MappedRows(Sequence[PackedRow]):
    """Rows that are read from the disk when they are asked for."""

    def __init__(self, arrays: dict[str, NDArray[Any]], digest: str) -> None:
        self._tokens, self._is_target = arrays["tokens"], arrays["is_target"]
        self._ends, self._first = arrays["ends"], arrays["first"]
        self.digest = digest

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, place: int) -> PackedRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[PackedRow]: ...
    def __getitem__(self, place: int | slice) -> PackedRow | list[PackedRow]:
        if isinstance(place, slice):
            return [self._row(number) for number in range(*place.indices(len(self)))]
        return self._row(range(len(self))[place])

    def _row(self, number: int) -> PackedRow:
        ends = self._ends[self._first[number] : self._first[number + 1]]
        return PackedRow(
            self._tokens[number].astype(np.int64), ends.astype(np.int64), np.array(self._is_target[number])
        )

    @property
    def used(self) -> int:
        """Tokens that are no padding."""
        return int(self._ends[self._first[1:] - 1].sum(dtype=np.int64))


def fingerprint(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    section: TaskSection,
    *,
    template: ChatTemplate | None,
    sequence_length: int,
    model: ModelSection,
) -> str | None:
    """Of what `read_examples` would make of the same arguments; None where that cannot be told: a dataset of the Hub.

    Raises:
        DataError: a path stands for no file.
    """
    stamps = []
    for given in find_inputs(paths).inputs:
        if not isinstance(given, Path):
            return None
        try:
            found = given.stat()
        except OSError:
            return None
        stamps.append((str(given), found.st_size, found.st_mtime_ns))
    parts = (
        (__version__, FORMAT, version("tokenizers"), version("numpy")),
        (section.name, section.model_dump_json(), sequence_length, model.padded_vocab_size),
        (tokenizer.sha256, tokenizer.eos_id, tokenizer.pad_id, template.source if template else None),
        stamps,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def write_examples(folder: Path, found: ExampleSet) -> None:
    """Into a new folder. Of a kind of examples that has more to it than tokens and targets, nothing is written.

    Raises:
        OSError: the folder cannot be written.
    """
    if type(found) is not ExampleSet or isinstance(found.rows, MappedRows) or not found.rows:
        return
    if any(row.labels is not None or row.token_types is not None or row.values is not None for row in found.rows):
        return
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    ends = [row.ends for row in found.rows]
    first = np.cumsum([0, *map(len, ends)])
    for name, values in (("ends", np.concatenate(ends)), ("first", first)):
        np.save(made / f"{name}.npy", values.astype(_ARRAYS[name]))
    for name in ("tokens", "is_target"):
        shape = (len(found.rows), found.sequence_length + 1)
        whole = np.lib.format.open_memmap(made / f"{name}.npy", mode="w+", dtype=_ARRAYS[name], shape=shape)
        for number, row in enumerate(found.rows):
            whole[number] = getattr(row, name)
        whole.flush()
    record = {"digest": digest(found.rows), "sequence_length": found.sequence_length, "parts": found.parts}
    write_json(made / _RECORD, record | {"files": [asdict(file) for file in found.files]})
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def open_examples(folder: Path) -> ExampleSet | None:
    """What `write_examples` has put there; None where that is not whole."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        files = [FileReport(**file) for file in record["files"]]
        length, parts, found = record["sequence_length"], record["parts"], str(record["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rows = len(arrays["first"]) - 1
    shapes = {"tokens": (rows, length + 1), "is_target": (rows, length + 1), "first": (rows + 1,)}
    if rows < 1 or any(arrays[name].shape != shape for name, shape in shapes.items()):
        return None
    if any(arrays[name].dtype != dtype for name, dtype in _ARRAYS.items()):
        return None
    if arrays["first"][-1] != len(arrays["ends"]):
        return None
    return ExampleSet(rows=MappedRows(arrays, found), files=files, sequence_length=length, parts=parts)


def remove_others(folder: Path, keep: set[str]) -> None:
    """Of examples that the run had before its files, or its tokenizer, changed."""
    for entry in _folders(folder):
        if entry.name not in keep:
            shutil.rmtree(entry, ignore_errors=True)


def _folders(folder: Path) -> Iterator[Path]:
    try:
        yield from list(folder.iterdir())
    except OSError:
        return
