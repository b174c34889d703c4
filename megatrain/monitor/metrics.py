"""metrics.jsonl: a JSON object a line, one per logged step and one per evaluation."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatrain.errors import DataError
from megatrain.run_dir import RunDir, write_atomically


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
        OSError: the run folder cannot be written.
    """

    def __init__(self, run: RunDir, *, resume_step: int) -> None:
        rows = _rows(run.metrics) if resume_step else ()
        kept = [line for line, row in rows if row is not None and row["step"] <= resume_step]
        write_atomically(run.metrics, "".join(f"{line}\n" for line in kept))
        self._file = open(run.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the run

    def write(self, metrics: StepMetrics) -> None:
        self._append(asdict(metrics))

    def write_validation(self, step: int, loss: float) -> None:
        """An evaluation after `step` optimizer steps; `loss` in nats a target token."""
        self._append({"step": step, "validation_loss": loss})

    def close(self) -> None:
        self._file.close()

    def _append(self, row: dict[str, Any]) -> None:
        finite = {key: _finite(value) for key, value in row.items() if value is not None}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in file order; a value that was not finite reads as None.

    A torn last line, which a running or killed writer leaves, is passed over.

    Raises:
        DataError: the file is absent, or a line before the last is not a JSON object with a step.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no metrics here; the first report of a run writes them")
    rows = list(_rows(path))
    for number, (_, row) in enumerate(rows[:-1], start=1):
        if row is None:
            raise DataError(f"{path}:{number}: not a JSON object with a step; resuming the run drops such lines")
    return [row for _, row in rows if row is not None]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each line with what it says, or with None where it says nothing readable."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            complete = line.endswith("\n")  # a torn number can still be valid JSON, but its newline is missing
            yield line.rstrip("\n"), _parse(line) if complete else None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
