"""Going back in a run: what lies after the step that it resumes from is set aside, never deleted. No torch.

A run has one live branch: the folders step-N directly in `checkpoints`. Going back to step S renames those above S into
`checkpoints/abandoned-…/`, before the first step is taken. So retention, progress, and every later start, by hand or by
Slurm, see the branch that is being trained and no other.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from megatrain.base.errors import CheckpointError
from megatrain.base.files import reason
from megatrain.base.terminal import copyable
from megatrain.checkpoint.manifest import has_all_files
from megatrain.monitor.metrics_file import keep_until, last_step
from megatrain.run.attempts import read_attempts
from megatrain.run.directory import MANIFEST, RunDir, parse_resume

TEMPORARY = ".tmp-"  # a checkpoint that is being written
DELETED = ".replaced-"  # one that is being deleted
_ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class SetAside:
    """Checkpoints that a run has left, and the folder that holds them now."""

    steps: list[int]
    folder: Path

    def __str__(self) -> str:
        what = f"step{'s' * (len(self.steps) > 1)} {', '.join(map(str, self.steps))}" if self.steps else "the metrics"
        if len(self.steps) > 5:
            what = f"{len(self.steps)} checkpoints, of steps {self.steps[0]} to {self.steps[-1]}"
        return f"set aside: {what}, now in {self.folder}. Nothing reads it; to delete it: rm -r {copyable(self.folder)}"


def go_back(run: RunDir, resume: str) -> SetAside | None:
    """Carry out what --resume asks for, once, where the ranks of later starts will be told "auto".

    Raises:
        CheckpointError: the step is not there as a whole, or what is to be set aside cannot be moved.
        ConfigError: `resume` is nothing that can be asked for.
    """
    wanted = parse_resume(resume)
    try:
        if wanted == "never":
            return begin_anew(run)
        if not isinstance(wanted, int):
            return None
        if not has_all_files(run.step(wanted)):
            raise CheckpointError(f"{run.step(wanted)}: is not whole; see `megatrain checkpoint verify {run}`")
        return set_aside(run, wanted)
    except OSError as error:
        raise CheckpointError(f"{error.filename or run.checkpoints}: cannot be set aside: {reason(error)}") from None


def set_aside(run: RunDir, after: int) -> SetAside | None:
    """Take every checkpoint above step `after` out of the live branch, the highest first; None where there is none.

    The metrics that they were saved with go along as a copy: the run's own follow the live branch.

    Raises:
        OSError: one cannot be moved. Those above it have been.
    """
    steps = [step for step in run.step_folders() if step > after]
    if not steps:
        return None
    folder = _new_folder(run, after)
    if run.metrics.is_file():
        shutil.copyfile(run.metrics, folder / run.metrics.name)
    for step in reversed(steps):  # cut short, what is left is still a branch without a gap
        run.step(step).rename(folder / run.step(step).name)
    if run.metrics.is_file():
        keep_until(run, max(after, 0))
    return SetAside(steps, folder)


def begin_anew(run: RunDir) -> SetAside | None:
    """Set aside all that the run has done: checkpoints, metrics, events, and the history of its starts.

    Raises:
        OSError: something cannot be moved.
    """
    done = [run.metrics, run.tensorboard, run.attempts, run.outcomes]
    there = [path for path in done if path.exists()]
    steps = run.step_folders()
    if not steps and not there:
        return None
    folder = _new_folder(run, -1)
    for path in [run.step(step) for step in reversed(steps)] + there:
        path.rename(folder / path.name)
    return SetAside(steps, folder)


def refuse_lost_progress(run: RunDir, interval_steps: int) -> None:
    """Absent is not new: refuse to begin where the run's own files tell of checkpoints, and none is there.

    Args:
        interval_steps: of the checkpoints, in the configuration that the run was started with.

    Raises:
        CheckpointError: says what is missing, and how to begin all the same.
    """
    folders = run.step_folders()
    if any((run.step(step) / MANIFEST).is_file() for step in folders):
        return  # whether they verify is seen when they are read
    if folders:
        why = f"step {folders[-1]:,} is there without its {MANIFEST}"
    elif saved := max((max(a.start_step, a.end_step or 0) for a in read_attempts(run)), default=0):
        why = f"{run.attempts.name} tells of step {saved:,} saved"
    elif (reported := last_step(run)) > interval_steps:
        why = f"{run.metrics.name} reaches step {reported:,}, and one was saved every {interval_steps:,} steps"
    else:
        return
    raise CheckpointError(
        f"{run.checkpoints}: holds no checkpoint, but {why}. Bring it back (is a disk not mounted?), or begin the run "
        "anew with --resume never, which sets aside what there is."
    )


def remove_leftovers(run: RunDir) -> None:
    """Delete what saves and deletions that were cut short have left. For who has the run; never fails."""
    for leftover in leftovers(run):
        shutil.rmtree(leftover, ignore_errors=True)


def leftovers(run: RunDir) -> list[Path]:
    try:
        return [entry for entry in run.checkpoints.iterdir() if entry.name.startswith((TEMPORARY, DELETED))]
    except OSError:
        return []


def leftover_bytes(run: RunDir) -> int:
    """What `remove_leftovers` would free."""
    total = 0
    for leftover in leftovers(run):
        for folder, _, names in os.walk(leftover):
            for name in names:
                try:
                    total += (Path(folder) / name).lstat().st_size
                except OSError:
                    continue  # gone in the meantime
    return total


def _new_folder(run: RunDir, after: int) -> Path:
    """abandoned-after-00000040-20300101T000000Z, with a number behind it where there is one already."""
    what = f"after-{after:08d}" if after >= 0 else "all"
    name = f"{_ABANDONED}-{what}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for number in range(1, 1000):
        folder = run.checkpoints / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(17, "a thousand runs of this second are set aside", str(run.checkpoints / name))
