"""RUN/outcomes/N.json: of attempt N, the first rank that did not simply finish: which, where and why.

When a rank dies, the others notice in the middle of a collective, and may be the first to say so. Such an error is of a
peer: it is kept until a rank says something else, and speaks against no machine.
"""

import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from megatrain.base.errors import ExitCode, MegatrainError, PreflightError
from megatrain.base.files import read_model
from megatrain.run.attempts import give_room, read_attempts
from megatrain.run.claim import Claim, own_claim, superseded
from megatrain.run.directory import RunDir
from megatrain.run.record import Code, Name, Record, Seconds, Text, write_record

_LIMIT = 1 << 20  # bytes of an outcome's file

# What NCCL, Gloo, UCX and the kernel say on a healthy machine whose peer is gone.
_OF_A_PEER = re.compile(
    r"unhandled system error|ncclsystemerror|ncclremoteerror|remote (?:process|rank|peer)|communicator was aborted|"
    r"(?:closed|reset) by (?:remote )?peer|connection (?:was |has been )?(?:closed|reset|refused|aborted|timed out)|"
    r"broken pipe|no route to host|network is unreachable|socket timeout|timed out waiting|got 0 bytes|"
    r"watchdog caught collective|distnetworkerror|diststoreerror",
    re.IGNORECASE,
)


class Outcome(Record):
    """How an attempt ended, as the first rank saw it that did not simply finish."""

    exit_code: Code
    error: Text
    rank: int = Field(ge=0, le=10**8)
    host: Name
    time: Seconds
    retryable: bool = True  # False: another attempt would come to the same end

    @property
    def of_a_peer(self) -> bool:
        """Whether the error is what ranks print of another one that is gone."""
        return _OF_A_PEER.search(self.error) is not None


def record_outcome(
    run: RunDir,
    exit_code: int,
    error: str,
    *,
    retryable: bool = True,
    rank: int | None = None,
    claim: Claim | None = None,
) -> None:
    """Say how a rank ends, unless another one of its attempt was first, or another attempt has the run.

    Never raises: a rank is dying.

    Args:
        rank, claim: of the rank; default: this process, by its environment.
    """
    claim = claim or own_claim()
    if claim is None or superseded(run, claim):
        return
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if rank is None:
        rank = _own_rank()
    with suppress(OSError, ValueError, MegatrainError):
        outcome = Outcome(
            exit_code=int(exit_code), error=error, rank=rank, host=host, time=time.time(), retryable=retryable
        )
        try:
            _keep(run, claim.attempt, outcome)
        except OSError:
            if give_room(run):
                _keep(run, claim.attempt, outcome)


def read_outcome(run: RunDir, attempt: int) -> Outcome | None:
    """None where every rank simply finished, or none could say how it ended.

    Raises:
        PreflightError: the file is there, and is no outcome.
    """
    path = run.outcomes / f"{attempt}.json"
    return read_model(path, Outcome, error=PreflightError, limit=_LIMIT) if os.path.lexists(path) else None


def last_error(run: RunDir) -> str | None:
    """What ended the last attempt, where it was an error. Raises PreflightError as `read_attempts` does."""
    attempts = read_attempts(run)
    if not attempts:
        return None
    outcome = read_outcome(run, len(attempts) - 1)
    if outcome is not None and outcome.exit_code != ExitCode.STOPPED:
        return f"rank {outcome.rank} on {outcome.host}: {outcome.error}"
    return attempts[-1].error


def _keep(run: RunDir, attempt: int, outcome: Outcome) -> None:
    run.outcomes.mkdir(exist_ok=True)
    path = run.outcomes / f"{attempt}.json"
    try:
        _write_first(path, outcome.fields())
    except FileExistsError:
        before = read_outcome(run, attempt)
        if before is not None and before.of_a_peer and not outcome.of_a_peer:
            write_record(path, outcome.fields())


def _write_first(path: Path, fields: dict[str, Any]) -> None:
    """Raises FileExistsError for all but one of many ranks."""
    with open(path, "x", encoding="utf-8") as file:
        try:
            file.write(json.dumps(fields) + "\n")
            file.flush()
        except OSError:
            path.unlink()  # half an outcome would keep another rank from leaving a whole one
            raise


def _own_rank() -> int:
    value = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(value) if value.isdecimal() else 0
