"""The checkpoints of one run, as all its ranks see them: writer, catalog and retention in one."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.base.errors import CheckpointError
from megatrain.base.files import reason
from megatrain.checkpoint import rewind
from megatrain.checkpoint.catalog import Catalog
from megatrain.checkpoint.collective import Ranks
from megatrain.checkpoint.planner import TensorPlanner
from megatrain.checkpoint.references import refer
from megatrain.checkpoint.retention import Retention
from megatrain.checkpoint.rewind import SetAside
from megatrain.checkpoint.snapshot import Snapshot
from megatrain.checkpoint.storage import SafeReader, cause_of
from megatrain.checkpoint.writer import CheckpointWriter
from megatrain.run.directory import RunDir, parse_step


class CheckpointStore:
    """Every method but `__init__` is collective.

    Args:
        group: a gloo group of all ranks, used by nothing else while a method runs.
        layout: of this run's ranks, in words; recorded for people.
        report: called with a line for people, on rank 0 only.
        beat: called with what is being done, while files are written, verified and loaded.
        guard: entered on rank 0 around what changes the run's folder; raises where another trainer has the run.
    """

    def __init__(
        self,
        run: RunDir,
        group: dist.ProcessGroup,
        *,
        layout: str,
        keep_last: int,
        report: Callable[[str], None],
        beat: Callable[[str], None] = lambda activity: None,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.run = run
        self._ranks = Ranks(group, run.checkpoints)
        self._report = report
        self._beat = beat
        self._guard = guard
        self._writer = CheckpointWriter(run, self._ranks, layout=layout, report=report, beat=beat, guard=guard)
        self._catalog = Catalog(self._ranks, report=report, beat=beat)
        self._retention = Retention(run, keep_last, report)

    def save(self, snapshot: Snapshot) -> Path:
        """Commit a checkpoint: see `CheckpointWriter.write`. Deletes none: see `retain`."""
        folder = self._writer.write(snapshot)
        self._retention.saved(snapshot.step)
        return folder

    def protect(self, step: int | None) -> None:
        """Keep the checkpoint of a step, beside the newest ones; and no other such one."""
        self._retention.protected = step

    def refer(self, folder: Path) -> None:
        """Let the run that a checkpoint is of keep it for this run, and say so where it cannot be told."""
        if self._ranks.is_first:
            try:
                refer(folder, self.run)
            except OSError as error:
                text = f"{folder}: must stay for as long as this run is used, and its run cannot be told"
                self._report(f"warning: {text} ({error.filename}: {reason(error)}): raise its checkpoint.keep_last")

    def retain(self) -> None:
        """Delete checkpoints beyond keep_last: see `Retention.delete_superseded`."""
        if self._ranks.is_first:
            self._retention.delete_superseded()

    def load(self, folder: Path, tensors: Mapping[str, Tensor], reader: StorageReader | None = None) -> None:
        """Fill this rank's tensors in place from a checkpoint of any layout.

        Args:
            reader: of another kind of storage than our own checkpoints.

        Raises:
            CheckpointError: a tensor is missing or has another shape, or the checkpoint is not as megatrain writes it.
        """
        reader = reader or self._ranks.on_each(lambda: _reader_of(folder, tensors))
        planner, group = TensorPlanner(self._beat), self._ranks.group
        try:
            dcp.load(dict(tensors), storage_reader=reader, planner=planner, process_group=group)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, folder)) from error

    def newest_valid(self, run: RunDir | None = None) -> Path | None:
        """See `Catalog.newest_valid`.

        Args:
            run: another run than the store's own.
        """
        newest = self._catalog.newest_valid(run or self.run)
        self._note_verified(newest)
        return newest

    def find_damage(self, folder: Path) -> list[str]:
        """See `Catalog.find_damage`."""
        found = self._catalog.find_damage(folder)
        if not found:
            self._note_verified(folder)
        return found

    def set_aside(self, after: int) -> None:
        """Take checkpoints above a step out of the live branch, before the first step of this start, and say so.

        Raises:
            CheckpointError: one cannot be moved; then nothing may be trained.
        """

        def move() -> SetAside | None:
            with self._guard():
                return rewind.set_aside(self.run, after)

        moved = self._ranks.on_first(move)
        if moved is not None and self._ranks.is_first:
            self._report(str(moved))

    def remove_leftovers(self) -> None:
        """Of saves that were killed, at a start: this run is this start's."""

        def remove() -> None:
            with self._guard():
                rewind.remove_leftovers(self.run)

        self._ranks.on_first(remove)

    def _note_verified(self, folder: Path | None) -> None:
        step = parse_step(folder) if folder is not None else None
        if step is not None and folder == self.run.step(step):
            self._retention.verified(step)


def _reader_of(folder: Path, tensors: Mapping[str, Tensor]) -> SafeReader:
    reader = SafeReader(folder)
    reader.expect(tensors)
    return reader
