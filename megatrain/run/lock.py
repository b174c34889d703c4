"""The two locks of a run. Both are the operating system's (flock, by filelock): it gives them back when their holder
dies, and nobody takes one from a holder that lives, however long it takes.

RUN/attempts.lock    held for moments: around a change of attempts.json, and around the rename that commits a checkpoint
RUN/launcher.lock    held by the launcher of ranks for as long as it lives
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from megatrain.base.errors import PreflightError
from megatrain.base.files import reason
from megatrain.run.directory import RunDir

WAIT_SECONDS = 60.0
_LAUNCHER_SECONDS = 5.0  # for the launcher before this one, which has printed its final message, to be gone


class LockHeldError(PreflightError):
    """Another process holds the lock."""


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """One at a time, over all nodes that see the run's folder.

    Raises:
        LockHeldError: another process holds it for longer than anyone should.
        PreflightError: the file system cannot lock it.
    """
    with _held(run.path / "attempts.lock", WAIT_SECONDS, "another process"):
        yield


@contextmanager
def launcher_lock(run: RunDir) -> Iterator[None]:
    """One launcher at a time. Raises as `locked` does."""
    with _held(launcher_file(run), _LAUNCHER_SECONDS, "the process that trains the run"):
        descriptor = os.open(launcher_file(run), os.O_RDONLY | os.O_NONBLOCK)  # filelock has it open only with flock
        try:
            yield
        finally:
            os.close(descriptor)


def launcher_file(run: RunDir) -> Path:
    """A file that the run's launcher has open, and no other process."""
    return run.path / "launcher.lock"


@contextmanager
def _held(path: Path, seconds: float, holder: str) -> Iterator[None]:
    if not path.parent.is_dir():  # filelock would make it, and with it a run's folder that was deleted
        raise PreflightError(f"{path}: cannot be locked: there is no folder {path.parent}")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise LockHeldError(f"{path}: is held by {holder}, for more than {seconds:.0f} s") from None
    except (OSError, NotImplementedError) as error:
        raise PreflightError(f"{path}: cannot be locked: {reason(error)}") from None
    try:
        yield
    finally:
        lock.release()
