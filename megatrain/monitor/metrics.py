"""metrics.jsonl: a JSON object a line, one per logged step and one per evaluation."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatrain.base.errors import DataError, PreflightError
from megatrain.base.files import open_regular, parse_json, reason, write_atomically
from megatrain.run.directory import RunDir

_LONGEST_LINE = 1 << 16  # bytes; ours have 300


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One report of the training loop: averages over the optimizer steps since the report before."""

    step: int  # optimizer steps done
    loss: float  # nats a target token
    grad_norm: float  # before clipping, over all parameters
    learning_rate: float
    tokens: int  # consumed since the start of the run, over all ranks
    step_seconds: float
    tokens_per_second: float  # over all ranks
    mfu: float  # 0..1; the convention is `throughput`'s
    data_wait_seconds: float  # of a step, waiting for the loader
    memory_bytes: int  # peak of this rank, after its first step
    memory_reserved_bytes: int | None = None  # likewise, with what the allocator of a GPU keeps for later
    validation_loss: float | None = None


class MetricsLog:
    """Appends to RUN/metrics.jsonl. Each line reaches the operating system at once, the disk when that likes.

    A resumed run replays the steps after its checkpoint, so the lines of those steps are dropped first, and with
    them whatever a crash left unreadable. With `resume_step=0` nothing has been trained yet, and the file starts empty.

    Raises:
        PreflightError: the file cannot be written, then or later.
        DataError: it cannot be read.
    """

    def __init__(self, run: RunDir, *, resume_step: int) -> None:
        self._path = run.metrics
        self._failed = False
        try:
            keep_until(run, resume_step)
            self._file = open(run.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise self._cannot_write(error) from None

    def write(self, metrics: StepMetrics) -> None:
        self._append(asdict(metrics))

    def write_validation(self, step: int, loss: float) -> None:
        """An evaluation after `step` optimizer steps; `loss` in nats a target token."""
        self._append({"step": step, "validation_loss": loss})

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:  # else it has been said
                raise self._cannot_write(error) from None

    def _append(self, row: dict[str, Any]) -> None:
        finite = {key: _finite(value) for key, value in row.items() if value is not None}
        try:
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> PreflightError:
        self._failed = True
        return PreflightError(f"{self._path}: cannot be written: {reason(error)}")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in file order; a value that was not finite reads as None.

    A torn last line, which a running or killed writer leaves, is passed over.

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


_NUMBERS = {field.name for field in fields(StepMetrics)}


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line, "a line", DataError)
    except DataError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] <= 10**15:
        return None
    return row if all(_is_number(row[name]) for name in _NUMBERS & row.keys()) else None


def _is_number(value: Any) -> bool:
    """Or null, which stands for one that was not finite."""
    if value is None:
        return True
    return type(value) in (int, float) and -1e30 < value < 1e30


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
