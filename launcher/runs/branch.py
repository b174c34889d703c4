"""The checkpoint of another run as the first of a new one: by hard links where one disk holds both, else copied.

From then on the run needs the other no more: it may delete its checkpoint, go on, or be gone.
"""

import os
import shutil
import time
from pathlib import Path

from megatrain.base.errors import CheckpointError
from megatrain.base.files import sync_folder
from megatrain.checkpoint.manifest import read_manifest
from megatrain.checkpoint.rewind import TEMPORARY
from megatrain.config.run import BranchSection
from megatrain.run.directory import MANIFEST, RunDir


def keep_branch(run: RunDir, branch: BranchSection) -> None:
    """Nothing where the run has a checkpoint. Its bytes are verified when it is loaded, as those of any other.

    Raises:
        CheckpointError: it is not whole, or the other run has deleted it.
        OSError: the run's folder cannot be written.
    """
    if run.steps():
        return
    source = Path(branch.checkpoint)
    names = [*read_manifest(source).files, MANIFEST]
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    temporary = run.checkpoints / f"{TEMPORARY}{run.step(branch.step).name}.{os.getpid()}.{time.time_ns()}"
    temporary.mkdir()
    try:
        for name in names:
            _link_or_copy(source / name, temporary / name)
        sync_folder(temporary)
        temporary.rename(run.step(branch.step))
        sync_folder(run.checkpoints)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_or_copy(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except FileNotFoundError:
        raise CheckpointError(_gone(source)) from None
    except OSError:  # another disk, or one without hard links
        try:
            with open(source, "rb") as old, open(to, "wb") as new:
                shutil.copyfileobj(old, new, 1 << 20)
                new.flush()
                os.fsync(new.fileno())
        except FileNotFoundError:
            raise CheckpointError(_gone(source)) from None


def _gone(source: Path) -> str:
    return f"{source}: is gone: its run has deleted that checkpoint by now (checkpoint.keep_last). Name another."
