"""Rows of what people have, one reader for preparing and fine-tuning: JSON lines, csv, parquet, arrow, the Hub."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatrain.base.errors import DataError
from megatrain.base.files import recognise
from megatrain.data.text.compression import open_data
from megatrain.data.text.hub import HubDataset, read_hub
from megatrain.data.text.kinds import Kind, kind_of
from megatrain.data.text.tables import read_table

MAXIMUM_BYTES = 32 << 20  # of a line or document: `tokenizers` takes a hundred times as much memory
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = {Kind.CSV: ",", Kind.TSV: "\t"}


class Row(NamedTuple):
    """One row's fields, where it stands (for messages), and the bytes of its file that were read with it."""

    fields: dict[str, Any]
    where: str
    bytes_read: int


def read_rows(
    given: Path | HubDataset,
    columns: Sequence[str] | None = None,
    *,
    kind: Kind | None = None,
    maximum_bytes: int = MAXIMUM_BYTES,
) -> Iterator[Row]:
    """Each row of a file or of a dataset of the Hub; see `inputs.find_inputs` for what a user's words stand for.

    Args:
        columns: what a table must have, the rest of it is not read; rows of JSON and csv come with all they have.
        kind: what to read the file as; default: what it is.
        maximum_bytes: of a line.

    Raises:
        DataError: the file holds no rows, is damaged or cut off, lacks a column, or a line is too long or not an
            object; names file and line.
    """
    if isinstance(given, HubDataset):
        for number, fields in enumerate(read_hub(given, columns), start=1):
            yield Row(fields, f"{given} row {number}", 0)
        return
    kind = kind or kind_of(given)
    if kind is Kind.JSON_LINES:
        yield from _json_lines(given, maximum_bytes)
    elif kind in (Kind.PARQUET, Kind.ARROW):
        for number, fields in enumerate(read_table(given, kind, columns), start=1):
            yield Row(fields, f"{given} row {number}", 0)
    elif kind in _DELIMITERS:
        yield from _separated(given, _DELIMITERS[kind], maximum_bytes)
    else:
        raise DataError(f"{given}: is {kind}, which has no rows: give JSON lines, csv, parquet or arrow")


def too_long(where: object, what: str, maximum_bytes: int) -> DataError:
    return DataError(
        f"{where}: {what} of more than {maximum_bytes:,} bytes. Split it into several; `data prepare` takes more with "
        "--max-document-mebibytes, and a hundred times as much memory"
    )


def _json_lines(file: Path, maximum_bytes: int) -> Iterator[Row]:
    decode = json.JSONDecoder().decode
    with open_data(file) as (raw, stream):
        for number, line in enumerate(_lines(file, stream, maximum_bytes), start=1):
            if line.isspace():
                continue
            try:
                fields = decode(line.decode())
            except RecursionError:
                raise DataError(f"{file}:{number}: is JSON nested too deeply to be read") from None
            except ValueError as error:
                raise DataError(f"{file}:{number}: is not valid JSON: {error}") from None
            if not isinstance(fields, dict):
                raise DataError(f"{file}:{number}: must be a JSON object, one per line")
            yield Row(fields, f"{file}:{number}", raw.tell())


def _separated(file: Path, delimiter: str, maximum_bytes: int) -> Iterator[Row]:
    """Rows under a header line that names the fields; a field in quotes may have several lines."""
    csv.field_size_limit(maximum_bytes)
    with open_data(file) as (raw, stream):
        reader = csv.DictReader((line.decode() for line in _lines(file, stream, maximum_bytes)), delimiter=delimiter)
        try:
            for fields in reader:
                where = f"{file}:{reader.line_num}"
                if None in fields:
                    raise DataError(f"{where}: has more fields than the first line names")
                yield Row(fields, where, raw.tell())
        except UnicodeDecodeError as error:
            raise DataError(f"{file}:{reader.line_num + 1}: is not UTF-8 text: {error}") from None
        except csv.Error as error:
            raise DataError(f"{file}:{reader.line_num}: is not valid: {error}") from None


def _lines(file: Path, stream: io.BufferedReader, maximum_bytes: int) -> Iterator[bytes]:
    """Lines end with \\n only: JSON strings may hold U+2028 and other separators as they are."""
    number = 1
    line = stream.readline(maximum_bytes + 1).removeprefix(_BOM)
    if line.strip() and (known := recognise(line[:64])):
        raise DataError(f"{file}: is {known}")
    while line:
        if len(line) > maximum_bytes:
            raise too_long(f"{file}:{number}", "has a line", maximum_bytes)
        yield line
        line = stream.readline(maximum_bytes + 1)
        number += 1
