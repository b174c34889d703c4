"""Documents, in a fixed order, out of what people have: jsonl, text, tables, datasets of the Hub, Megatron's tokens.

Lines and plain text are read directly: through `datasets` that takes several times as long.
"""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import zstandard
from numpy.typing import NDArray

from megatrain.data.folder.files import FileRecord, sha256_file
from megatrain.data.text.megatron import read_megatron
from megatrain.data.text.tables import HUB, HubDataset, no_field, read_hub, read_table
from megatrain.errors import DataError

_LINES = (".jsonl", ".ndjson")
_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_MEGATRON = ".idx"
_CHUNK_BYTES = 1 << 20

Input = Path | HubDataset


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or the tokens of one; where it stands (for messages), and the bytes of all files read with it."""

    content: str | NDArray[np.int64]
    where: str
    bytes_read: int


def find_inputs(inputs: Sequence[str | Path]) -> list[Input]:
    """What paths, folders (all files below, hidden ones left out), glob patterns and names of the Hub stand for.

    Of tokens that Megatron prepared, NAME.idx stands for both files. Each input's files are sorted by path, so that the
    order of documents does not depend on the file system. What is named twice is read once.

    Raises:
        DataError: an input stands for no file.
    """
    found: dict[Input, None] = {}
    for given in map(str, inputs):
        if given.startswith(HUB):
            found[HubDataset.parse(given)] = None
            continue
        path = Path(given)
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
        else:
            matches = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(file for file in map(Path, matches) if file.is_file())
        if not files:
            raise DataError(f"{given}: no such file, or no file below it. Give a file, a folder or a quoted glob.")
        found.update(dict.fromkeys(_index_of(file) for file in files))
    return list(found)


def records(inputs: Sequence[Input]) -> Iterator[FileRecord]:
    """What each input is now: its files' sizes and hashes, or the commit and files of a dataset of the Hub.

    Raises:
        DataError: an input cannot be read.
    """
    for given in inputs:
        if isinstance(given, HubDataset):
            yield FileRecord(str(given), 0, given.fingerprint())
            continue
        tokens = given.with_suffix(".bin")
        for file in (given, tokens) if given.suffix == _MEGATRON and tokens.is_file() else (given,):
            try:
                yield FileRecord(str(file), file.stat().st_size, sha256_file(file))
            except OSError as error:
                raise _unreadable(file, error) from None


def read_documents(inputs: Sequence[Input], text_field: str) -> Iterator[Document]:
    """Every document of every input, in order. Text without a character is passed over.

    Raises:
        DataError: a file cannot be read, is cut off, or holds something else than text; names file and line.
    """
    before = 0
    for file in inputs:
        try:
            for document in (
                _read_hub(file, text_field) if isinstance(file, HubDataset) else _read_file(file, text_field)
            ):
                if len(document.content):
                    yield Document(document.content, document.where, before + document.bytes_read)
        except OSError as error:
            raise _unreadable(file, error) from None
        except (EOFError, zlib.error, zstandard.ZstdError):
            raise DataError(f"{file}: its compressed data is damaged or cut off. Copy the file again.") from None
        before += _size(file)


def _read_file(file: Path, text_field: str) -> Iterator[Document]:
    suffixes = [suffix for suffix in file.suffixes if suffix not in (".gz", ".zst")]
    kind = suffixes[-1] if suffixes else ""
    if kind in _TABLES:
        return _read_table(file, _TABLES[kind], text_field)
    if kind == _MEGATRON:
        return _read_megatron(file)
    if kind in _LINES:
        return _read_lines(file, text_field)
    if kind == ".json":
        raise DataError(
            f"{file}: one JSON value for all documents cannot be streamed. Write a .jsonl: an object a line."
        )
    return _read_text(file)


def _read_text(file: Path) -> Iterator[Document]:
    with open(file, "rb") as raw:
        data = b"".join(_chunks(file, raw))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: is not UTF-8 text (byte {error.start}). Convert it, or leave it out: name the inputs with a glob "
            f"such as '{file.parent}/**/*.txt'."
        ) from None
    yield Document(text, str(file), file.stat().st_size)


def _read_lines(file: Path, text_field: str) -> Iterator[Document]:
    with open(file, "rb") as raw:
        for number, line in enumerate(_lines(_chunks(file, raw)), start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: is not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: must be a JSON object with a field {text_field!r}")
            if text_field not in row:
                raise no_field(where, text_field, list(row))
            yield Document(_checked(row[text_field], where, text_field), where, raw.tell())


def _read_table(file: Path, builder: str, text_field: str) -> Iterator[Document]:
    for number, text in enumerate(read_table(file, builder, text_field), start=1):
        where = f"{file} row {number}"
        yield Document(_checked(text, where, text_field), where, 0)


def _read_hub(dataset: HubDataset, text_field: str) -> Iterator[Document]:
    for number, text in enumerate(read_hub(dataset, text_field), start=1):
        where = f"{dataset} row {number}"
        yield Document(_checked(text, where, text_field), where, 0)


def _read_megatron(file: Path) -> Iterator[Document]:
    for number, (tokens, bytes_read) in enumerate(read_megatron(file)):
        yield Document(tokens, f"{file} document {number}", bytes_read)


def _size(given: Input) -> int:
    if isinstance(given, HubDataset):
        return 0
    tokens = given.with_suffix(".bin")
    return (tokens if given.suffix == _MEGATRON and tokens.is_file() else given).stat().st_size


def _index_of(file: Path) -> Path:
    """NAME.idx for the NAME.bin beside it."""
    index = file.with_suffix(_MEGATRON)
    return index if file.suffix == ".bin" and index.is_file() else file


def _checked(value: object, where: str, text_field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {text_field}: {value!r:.40}: must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {text_field}: half a surrogate pair at character {error.start}: not Unicode"
        ) from None
    return value


def _unreadable(file: Input, error: OSError) -> DataError:
    return DataError(f"{file}: cannot be read: {error.strerror or error}")


def _chunks(file: Path, raw: IO[bytes]) -> Iterator[bytes]:
    if file.suffix == ".zst":
        yield from _zstandard_chunks(raw)
        return
    stream = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _zstandard_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """All frames of a file. The library's own stream reader takes a cut-off frame for the end: this does not."""
    frame = None
    while chunk := raw.read(_CHUNK_BYTES):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = io.BytesIO()
    for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        for line in lines:
            rest.write(line)
            yield rest.getvalue()
            rest = io.BytesIO()
        rest.write(last)
    if rest.getvalue():
        yield rest.getvalue()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
