"""RUN/job.json: the jobs that a submit made, and whether somebody asked for an end."""

import os
from typing import Any

from pydantic import Field

from megatrain.base.errors import PreflightError
from megatrain.base.files import parse_model, read_model
from megatrain.run.directory import RunDir
from megatrain.run.lock import locked
from megatrain.run.record import JobId, Record, Seconds, write_record

_LIMIT = 1 << 24  # bytes


class JobRecord(Record):
    jobs: list[JobId] = Field(default_factory=list)  # in the order in which they run
    submitted: Seconds = 0.0  # since 1970
    stop: bool = False  # save, stop, and do not come back


def read_job(run: RunDir) -> JobRecord:
    """An empty one where nothing was submitted. Raises PreflightError when the file is there, and is not one."""
    return (
        read_model(run.job, JobRecord, error=PreflightError, limit=_LIMIT) if os.path.lexists(run.job) else JobRecord()
    )


def update_job(run: RunDir, **changes: Any) -> JobRecord:
    """Raises PreflightError where it cannot be read or written."""
    with locked(run):
        job_record = parse_model(JobRecord, read_job(run).fields() | changes, run.job, PreflightError)
        write_record(run.job, job_record.fields())
    return job_record
