"""RUN/metrics.jsonl: a JSON object per line, one per logged step and one per evaluation."""

import json
import math
from collections.abc import Mapping
from typing import Any

from megatrain.base.errors import PreflightError
from megatrain.base.files import reason
from megatrain.monitor.metrics_file import keep_until
from megatrain.run.directory import RunDir


class JsonLines:
    """Appends. Each line reaches the operating system at once, the disk when that likes.

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

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step} | {name: _finite(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise self._cannot_write(error) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:  # else it has been said
                raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> PreflightError:
        self._failed = True
        return PreflightError(f"{self._path}: cannot be written: {reason(error)}")


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
