"""What becomes of a job when its ranks have ended: decided from what is recorded, without a look at anything else."""

import re
from typing import NamedTuple

from launcher.slurm.job_record import JobRecord
from megatrain.base.errors import ExitCode
from megatrain.config import Config
from megatrain.run.attempts import Attempt, attempts_without_progress
from megatrain.run.outcomes import Outcome

_MISTAKES = (
    ExitCode.USAGE,
    ExitCode.PREFLIGHT,
    ExitCode.DATA,
    ExitCode.CHECKPOINT,
)  # not retryable
# Errors of one machine, as CUDA, NCCL and the kernel word them. Illegal accesses and assertions are a program's.
_OF_A_NODE = re.compile(
    r"uncorrectable|hardware stack error|unspecified launch failure|launch timed out|no CUDA-capable device|"
    r"busy or unavailable|system not yet initialized|initialization error|CUDA driver|fallen off the bus|GPU is lost|"
    r"\bXid\b|Input/output error|Stale file handle|No space left on device|Bus error",
    re.IGNORECASE,
)


class Verdict(NamedTuple):
    requeue: bool
    exit_code: int
    message: str
    cause: str = ""  # the error that it is requeued after
    aborted: bool = False  # until somebody resubmits it

    def text(self, then: str = "requeued") -> str:
        """For people. Args: then: what follows, where the run is to resume."""
        if not self.requeue:
            return self.message
        return f"{self.message}; {then}{f' after: {self.cause}' if self.cause else ''}"


def verdict(
    config: Config,
    attempts: list[Attempt],
    attempt: Attempt,
    outcome: Outcome | None,
    code: int,
    job_record: JobRecord,
    *,
    complete: bool,
) -> Verdict:
    """Decide what becomes of a job whose last attempt has been closed.

    Args:
        complete: whether the run has a checkpoint of its end.
        code: srun's exit code: 0 also where the ranks saved and stopped.
        outcome: of the first rank that did not simply finish.
    """
    step = attempt.end_step or 0
    if complete:
        return Verdict(False, ExitCode.DONE, f"finished: step {step:,}, {_restarts(len(attempts) - 1)}")
    if job_record.stop:
        return Verdict(False, ExitCode.STOPPED, f"stopped at step {step:,}, as asked; not requeued")
    stopped = code == 0 and outcome is not None and outcome.exit_code == ExitCode.STOPPED
    why = outcome.error if outcome else f"the ranks exited with {code} without recording an outcome"
    failed = outcome.exit_code if outcome and outcome.exit_code != ExitCode.STOPPED else int(ExitCode.CRASH)
    if not stopped and (failed in _MISTAKES or (outcome is not None and not outcome.retryable)):
        return Verdict(False, failed, f"not requeued: non-retryable error: {why}")
    in_vain = attempts_without_progress(attempts, job_record.submitted)
    allowed = config.slurm.max_restarts_without_progress
    exit_code = int(ExitCode.STOPPED) if stopped else failed
    if in_vain > allowed:
        text = f"aborted {_restarts(in_vain - 1)} without a new checkpoint. The last error: {why}."
        return Verdict(False, exit_code, text, aborted=True)
    saved = f"saved step {step:,}" if attempt.progressed else f"no new checkpoint (attempt {in_vain} of {allowed + 1})"
    return Verdict(True, exit_code, saved, "" if stopped else why)


def _restarts(count: int) -> str:
    return f"after {count} restart{'' if count == 1 else 's'}"


def node_is_to_blame(outcome: Outcome) -> bool:
    """Whether this failure speaks against its node: a bug of the program shows anywhere, and so does a lost peer."""
    if outcome.exit_code != ExitCode.CRASH or outcome.of_a_peer:
        return False
    return _OF_A_NODE.search(outcome.error) is not None
