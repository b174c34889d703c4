"""RUN/job.json: the jobs that a submit handed in, and whether somebody asked for an end."""

import os
from typing import Any

from pydantic import Field

from megatrain.base.files import parse_model, read_model
from megatrain.errors import PreflightError
from megatrain.run.lock import locked
from megatrain.run.record import JobId, Record, Seconds, write_record
from megatrain.run_dir import RunDir

_LIMIT = 1 << 24  # bytes


class JobFile(Record):
    jobs: list[JobId] = Field(default_factory=list)  # in the order in which they run
    submitted: Seconds = 0.0  # since 1970
    stop: bool = False  # save, stop, and do not come back


def read_job(run: RunDir) -> JobFile:
    """An empty one where nothing was submitted. Raises PreflightError when the file is there, and is not one."""
    return read_model(run.job, JobFile, error=PreflightError, limit=_LIMIT) if os.path.lexists(run.job) else JobFile()


def update_job(run: RunDir, **changes: Any) -> JobFile:
    """Raises PreflightError where it cannot be read or written."""
    with locked(run):
        book = parse_model(JobFile, read_job(run).fields() | changes, run.job, PreflightError)
        write_record(run.job, book.fields())
    return book
