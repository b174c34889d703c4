"""Rows of parquet and arrow files, a few hundred at a time."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatrain.base.errors import DataError
from megatrain.base.files import open_regular, recognise
from megatrain.data.text.kinds import Kind

_ROWS_AT_ONCE = 256


def read_table(file: Path, kind: Kind, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Each row of a parquet or arrow file, as Python values.

    Args:
        columns: the fields to read; default: all.

    Raises:
        DataError: the file is not such a table, is damaged, or lacks a column.
    """
    read = _read_parquet if kind is Kind.PARQUET else _read_arrow
    with open_regular(file, DataError) as source:
        try:
            yield from read(file, source, columns)
        except DataError:
            raise
        except Exception as error:  # the library lets through what its decoders raise
            source.seek(0)
            known = recognise(source.read(64))
            why = error if known is None or kind.value in known else f"it is {known}"
            raise DataError(f"{file}: cannot be read as {kind}: {why}") from None


class NoColumnError(DataError):
    """Rows that lack a field; its user says how to choose another."""

    def __init__(self, where: object, column: str, known: Iterable[object]) -> None:
        super().__init__(f"{where}: has no field {column!r}. It has {', '.join(map(str, known)) or 'none'}")


def _read_parquet(file: Path, source: Any, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile  # takes a moment to import: only for those who need it

    table = ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
    _require(file, columns, table.schema_arrow.names)
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns and list(columns)):
        yield from batch.to_pylist()


def _read_arrow(file: Path, source: Any, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    from pyarrow import ipc

    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    table = ipc.open_file(source) if is_file else ipc.open_stream(source)
    _require(file, columns, table.schema.names)
    batches = map(table.get_batch, range(table.num_record_batches)) if is_file else table
    for batch in batches:
        chosen = batch if columns is None else batch.select(list(columns))
        chosen.validate(full=True)  # offsets of a damaged file would be followed anywhere
        for first in range(0, chosen.num_rows, _ROWS_AT_ONCE):
            yield from chosen.slice(first, _ROWS_AT_ONCE).to_pylist()


def _require(file: Path, columns: Sequence[str] | None, known: Sequence[str]) -> None:
    for column in columns or ():
        if column not in known:
            raise NoColumnError(file, column, known)
