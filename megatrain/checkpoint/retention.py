"""Which checkpoints of a run may be deleted, and when. No torch."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from megatrain.base.errors import CheckpointError
from megatrain.base.files import reason
from megatrain.checkpoint.manifest import has_all_files
from megatrain.checkpoint.references import referred_to
from megatrain.checkpoint.rewind import DELETED, remove_leftovers
from megatrain.run.directory import RunDir


class Retention:
    """Keeps the `keep_last` newest that are whole, and those that other runs refer to. Damaged ones neither count nor
    are deleted: somebody may want to look at them.

    Args:
        report: called with a line for people.
    """

    def __init__(self, run: RunDir, keep_last: int, report: Callable[[str], None]) -> None:
        self._run = run
        self._keep_last = keep_last
        self._report = report
        self.protected: int | None = None  # a step that is kept, whatever its age
        self._said: set[int] = set()  # steps that are kept for other runs, as was reported
        self._unproven = True  # the newest, which may be of an earlier start
        self._whole: set[int] = set()  # steps that verified, or were saved, since this start

    def saved(self, step: int) -> None:
        self._whole.add(step)
        self._unproven = True

    def verified(self, step: int) -> None:
        self._whole.add(step)

    def delete_superseded(self) -> None:
        """Once the newest has shown itself good: its weights gave a finite loss. Before that this does nothing.

        Finite weights may have diverged all the same, and then the one before is the last that is of use. A failure is
        no reason to end a run whose checkpoint has been saved: it is reported.
        """
        if not self._unproven:
            return
        self._unproven = False
        try:
            for step in self._superseded():
                doomed = move_away(self._run, step)
                self._whole.discard(step)
                shutil.rmtree(doomed)
            remove_leftovers(self._run)
        except (OSError, CheckpointError) as error:
            text = error if isinstance(error, CheckpointError) else f"{error.filename}: {reason(error)}"
            self._report(f"warning: an older checkpoint cannot be deleted: {text}")

    def _superseded(self) -> list[int]:
        steps = self._run.steps()
        self._whole |= {step for step in steps if step not in self._whole and has_all_files(self._run.step(step))}
        old = [step for step in steps if step in self._whole][: -self._keep_last]
        needed = referred_to(self._run)
        for step in sorted((set(old) & needed.keys()) - self._said):
            self._said.add(step)
            self._report(f"kept: step {step}, which {needed[step]} refers to")
        return [step for step in old if step != self.protected and step not in needed]


def move_away(run: RunDir, step: int) -> Path:
    """Rename a checkpoint so that it looks like none: a deletion that is cut short must not leave half of one.

    Raises:
        OSError: it cannot be renamed.
    """
    doomed = run.checkpoints / f"{DELETED}{run.step(step).name}.{time.time_ns()}"
    run.step(step).rename(doomed)
    return doomed
