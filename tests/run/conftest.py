from pathlib import Path

import pytest

from megatrain.run.attempts import Attempt
from megatrain.run.directory import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def an_attempt(start: int = 0, end: int | None = 0, started: float = 10.0, **fields: object) -> Attempt:
    given = {"job": None, "host": "h", "pid": 1, "ranks": 2, "started": started, "ended": started + 1}
    return Attempt.model_validate(given | {"start_step": start, "end_step": end} | fields)
