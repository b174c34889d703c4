"""What RUN/metrics.jsonl holds: a JSON object per line, one per logged step and one per evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatrain.base.errors import DataError
from megatrain.base.files import open_regular, parse_json, reason, write_atomically
from megatrain.run.directory import RunDir

_LONGEST_LINE = 1 << 18  # bytes; ours have 300, those of 200 labels reported one by one up to 60,000


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in file order; a value that was not finite reads as None.

    A torn last line, which a running or killed writer leaves, is skipped.

    Raises:
        DataError: the file is absent or cannot be read, or a line before the last is not a JSON object with a step.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no metrics here; the first report of a run writes them")
    rows = list(_rows(path))
    for number, (_, row) in enumerate(rows[:-1], start=1):
        if row is None:
            raise DataError(f"{path}:{number}: not a JSON object with a step; resuming the run drops such lines")
    return [row for _, row in rows if row is not None]


def keep_until(run: RunDir, step: int) -> None:
    """Drop the rows after a step, and those that cannot be read; at 0 all.

    Raises:
        DataError: the file cannot be read.
        OSError: it cannot be written.
    """
    rows = _rows(run.metrics) if step else ()
    kept = [line for line, row in rows if row is not None and row["step"] <= step]
    write_atomically(run.metrics, "".join(f"{line}\n" for line in kept))


def last_step(run: RunDir) -> int:
    """The highest step that metrics.jsonl tells of; 0 where it tells of none. Raises DataError if it cannot be read."""
    return max((row["step"] for _, row in _rows(run.metrics) if row is not None), default=0)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line with what it says, or with None where it says nothing readable."""
    if not path.exists():
        return
    with open_regular(path, DataError) as file:
        try:
            while line := file.readline(_LONGEST_LINE):
                complete = line.endswith(b"\n")  # a torn number can still be valid JSON, but its newline is missing
                text = line.decode("utf-8", errors="replace").rstrip("\n")
                yield text, _parse(text) if complete else None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {reason(error)}") from None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line, "a line", DataError)
    except DataError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] <= 10**15:
        return None
    return row if all(map(_is_number, row.values())) else None


def _is_number(value: Any) -> bool:
    """Or null, which stands for one that was not finite."""
    if value is None:
        return True
    return type(value) in (int, float) and -1e30 < value < 1e30
