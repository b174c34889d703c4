"""RUN/job.json: the jobs that a submit handed in, and whether somebody asked for an end."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatrain.run_dir import RunDir, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    jobs: list[str] = field(default_factory=list)  # in the order in which they run
    submitted: float = 0.0  # seconds since 1970
    stop: bool = False  # save, stop, and do not come back


def read_job(run: RunDir) -> JobFile:
    """An empty one where nothing was submitted."""
    try:
        return JobFile(**json.loads(run.job.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return JobFile()


def update_job(run: RunDir, **changes: Any) -> JobFile:
    book = replace(read_job(run), **changes)
    write_json(run.job, asdict(book))
    return book
