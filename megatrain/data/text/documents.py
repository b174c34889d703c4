"""Documents, in a fixed order, out of what people have: rows with a text, plain text, Megatron's tokens."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatrain.base.errors import DataError
from megatrain.base.files import reason
from megatrain.data.text.compression import open_data
from megatrain.data.text.hub import HubDataset
from megatrain.data.text.inputs import Found, Input, size_of
from megatrain.data.text.kinds import Kind, advice, kind_of
from megatrain.data.text.megatron import read_megatron
from megatrain.data.text.rows import MAXIMUM_BYTES, read_rows, too_long
from megatrain.data.text.tables import NoColumnError

NULL_TEXT = "null_text"  # what rows without a text are counted as
_SHOWN_FILES = 3
_CHUNK_BYTES = 1 << 20


class Document(NamedTuple):
    """One text, or the tokens of one; where it stands (for messages), and the bytes of all files read with it."""

    content: str | NDArray[np.int64]
    where: str
    bytes_read: int


def read_documents(
    inputs: Sequence[Input],
    text_field: str,
    *,
    maximum_bytes: int = MAXIMUM_BYTES,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Every document of every input, in order. Text without a character is skipped.

    Args:
        maximum_bytes: of a line, or of a file that is one document.
        skipped: rows whose text is null or not there are counted here; default: they are refused.

    Raises:
        DataError: a file cannot be read, is cut off, or holds something else than text; names file and line.
    """
    before = 0
    for given in inputs:
        try:
            for document in _read(given, text_field, maximum_bytes, skipped):
                if len(document.content):
                    yield document if not before else document._replace(bytes_read=before + document.bytes_read)
            before += size_of(given)
        except NoColumnError as error:
            raise DataError(f"{error}: choose with --text-field.") from None
        except OSError as error:
            raise DataError(f"{given}: cannot be read: {reason(error)}") from None


def describe(found: Found) -> list[str]:
    """How many files are read as what, and what is skipped: a line each, the first names in it.

    Raises:
        DataError: a file can be read as nothing.
    """
    kinds = sorted((_kind_name(given), str(given)) for given in found.inputs)
    lines = [_counted(kind, [name for _, name in group]) for kind, group in groupby(kinds, lambda pair: pair[0])]
    if found.passed_over:
        names = [str(file) for file in found.passed_over]
        lines.append(f"{_counted('skipped, as no data', names)}. To read one, name it.")
    return lines


def _read(given: Input, text_field: str, maximum_bytes: int, skipped: Counter[str] | None) -> Iterator[Document]:
    kind = None if isinstance(given, HubDataset) else kind_of(given)
    if isinstance(given, Path) and kind is Kind.TEXT:
        yield _read_text(given, maximum_bytes)
        return
    if isinstance(given, Path) and kind is Kind.MEGATRON:
        for number, (tokens, bytes_read) in enumerate(read_megatron(given)):
            yield Document(tokens, f"{given} document {number}", bytes_read)
        return
    for fields, where, bytes_read in read_rows(given, (text_field,), kind=kind, maximum_bytes=maximum_bytes):
        value = fields.get(text_field)
        if value is None and skipped is not None:
            skipped[NULL_TEXT] += 1
            continue
        if not (isinstance(value, str) and (value.isascii() or _is_unicode(value))):
            raise _not_text(fields, where, text_field)
        if len(value) > maximum_bytes:
            raise too_long(where, f"has a {text_field}", maximum_bytes)
        yield Document(value, where, bytes_read)


def _read_text(file: Path, maximum_bytes: int) -> Document:
    with open_data(file) as (raw, stream):
        data = bytearray()
        while len(data) <= maximum_bytes and (chunk := stream.read(_CHUNK_BYTES)):
            data += chunk
        read = raw.tell()
    if len(data) > maximum_bytes:
        raise too_long(file, "is one document", maximum_bytes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (byte {error.start}). Convert it, or: {advice(file)}") from None
    return Document(text, str(file), read)


def _not_text(fields: dict[str, Any], where: str, text_field: str) -> DataError:
    if text_field not in fields:
        return NoColumnError(where, text_field, fields)
    value = fields[text_field]
    if value is None:
        return DataError(f"{where}: {text_field}: null: must be text. --skip-null leaves out such rows and counts them")
    if isinstance(value, str):
        return DataError(f"{where}: {text_field}: half a surrogate pair: not Unicode")
    shown = json.dumps(value, default=str)
    return DataError(f"{where}: {text_field}: {shown:.40}: must be text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind_name(given: Input) -> str:
    return "rows of the Hub" if isinstance(given, HubDataset) else kind_of(given).value


def _counted(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_FILES]) + (", …" if len(names) > _SHOWN_FILES else "")
    return f"{what}: {len(names):,} {'file' if len(names) == 1 else 'files'} ({shown})"
