"""Errors that a user can act on, and the exit code that each ends a command with.

Anything else that is raised is a defect of megatrain: it keeps its traceback and exits with 1.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What every `megatrain` command exits with."""

    DONE = 0
    CRASH = 1
    USAGE = 2  # usage or configuration
    PREFLIGHT = 3  # nothing fits, or a tool is missing
    DATA = 4
    CHECKPOINT = 5
    STOPPED = 75  # stopped by a signal, with a checkpoint saved (EX_TEMPFAIL: run it again)


class MegatrainError(Exception):
    """A mistake or a condition that its reader can fix; the text says how."""

    exit_code = ExitCode.CRASH
    retryable = False  # whether the same job, started again as it is, may get further; of other exceptions it may


class ConfigError(MegatrainError):
    exit_code = ExitCode.USAGE


class PreflightError(MegatrainError):
    exit_code = ExitCode.PREFLIGHT


class DataError(MegatrainError):
    exit_code = ExitCode.DATA


class CheckpointError(MegatrainError):
    exit_code = ExitCode.CHECKPOINT


class RendezvousError(MegatrainError):
    """The ranks cannot meet: a node or the network is at fault, or a port. Each rank knows its own reason."""

    retryable = True


class NonFiniteError(MegatrainError):
    """Loss, gradients, weights or validation loss are not finite: from the same checkpoint they would be so again."""


class Stopped(MegatrainError):  # noqa: N818 - an end, not an error
    """The run ended on a signal, after saving a checkpoint."""

    exit_code = ExitCode.STOPPED
    retryable = True
