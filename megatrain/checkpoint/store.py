"""Write a checkpoint so that it is whole or not there, and find the newest that is whole.

Write `.tmp-step-N.<attempt>/`, hashing on the way to disk; gather the hashes; MANIFEST.json last; fsync; rename; fsync
the parent. A crash at any point leaves the earlier checkpoints as they were. What is in the way of a new one is set
aside (rewind.py); only what retention has counted as superseded is deleted.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.base.errors import CheckpointError, MegatrainError
from megatrain.base.files import reason, write_json
from megatrain.checkpoint import rewind
from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, verify, write_manifest
from megatrain.checkpoint.planner import CompactSavePlanner, TensorPlanner
from megatrain.checkpoint.rewind import SetAside
from megatrain.checkpoint.state import STATE
from megatrain.checkpoint.storage import HashingWriter, SafeReader, cause_of
from megatrain.run.directory import RunDir, parse_step
from megatrain.version import __version__

_T = TypeVar("_T")


class CheckpointStore:
    """The checkpoints of one run, as all its ranks see them. Every method but `__init__` is collective.

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
        self.group = group
        self.layout = layout
        self.keep_last = keep_last
        self.report = report
        self.beat = beat
        self.guard = guard
        self._planner = CompactSavePlanner()  # plans do not change within a run
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)
        self._unproven = True  # the newest, which may be of an earlier start
        self._whole: set[int] = set()  # steps that verified, or were saved, since this start

    def save(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
        """Commit a checkpoint. One that fails leaves nothing behind. Deletes none: see `retain`.

        Args:
            tensors: what this rank owns; see fragments.py.
            state: small JSON-able facts, the same on every rank.

        Raises:
            CheckpointError: on every rank, when any rank could not write: which file, and why. Earlier checkpoints are
                untouched.
        """
        temporary = self._together(lambda: self._make_temporary(step))
        try:
            folder = self._write(temporary, step, tensors, state)
        except MegatrainError:
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._whole.add(step)
        self._unproven = True
        return folder

    def retain(self) -> None:
        """Delete checkpoints beyond keep_last, once the newest has shown itself good: its weights gave a finite loss.

        Finite weights may have diverged all the same, and then the one before is the last that is of use. A failure is
        no reason to end a run whose checkpoint has been saved.
        """
        if not self._unproven:
            return
        self._unproven = False
        if self.rank == 0:
            self._delete_superseded()

    def _write(self, temporary: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
        writer = HashingWriter(temporary, self.beat)
        try:
            dcp.save(dict(tensors), storage_writer=writer, planner=self._planner, process_group=self.group)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, temporary)) from error
        gathered: list[dict[str, FileRecord]] | None = [{}] * self.world_size if self.rank == 0 else None
        dist.gather_object(writer.records, gathered, dst=0, group=self.group)

        def commit() -> Path:
            files = {name: record for records in gathered or [] for name, record in records.items()}
            return self._commit(temporary, step, files, state)

        return self._together(commit)

    def load(self, folder: Path, tensors: Mapping[str, Tensor], reader: StorageReader | None = None) -> None:
        """Fill this rank's tensors in place from a checkpoint of any layout.

        Args:
            reader: of another kind of storage than our own checkpoints.

        Raises:
            CheckpointError: a tensor is missing or has another shape, or the checkpoint is not as megatrain writes it.
        """
        reader = reader or self._on_each_rank(lambda: _reader_of(folder, tensors))
        try:
            dcp.load(dict(tensors), storage_reader=reader, planner=TensorPlanner(self.beat), process_group=self.group)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, folder)) from error

    def newest_valid(self, run: RunDir | None = None) -> Path | None:
        """The newest checkpoint whose every byte verifies; the ranks share the reading. Names each one passed over.

        Args:
            run: another run than the store's own.
        """
        run = run or self.run
        for step in reversed(self._together(run.step_folders)):
            if not self.problems(run.step(step)):
                return run.step(step)
        return None

    def set_aside(self, after: int) -> None:
        """Take checkpoints above a step out of the live branch, before the first step of this start, and say so.

        Raises:
            CheckpointError: one cannot be moved; then nothing may be trained.
        """

        def move() -> SetAside | None:
            with self.guard():
                return rewind.set_aside(self.run, after)

        moved = self._together(move)
        if moved is not None and self.rank == 0:
            self.report(str(moved))

    def remove_leftovers(self) -> None:
        """Of saves that were killed, at a start: this run is this start's."""

        def remove() -> None:
            with self.guard():
                rewind.remove_leftovers(self.run)

        self._together(remove)

    def problems(self, folder: Path) -> list[str]:
        """What is wrong with a checkpoint, reported and returned on every rank; empty when its bytes verify."""
        found_here = verify(folder, part=self.rank, parts=self.world_size, beat=self.beat)
        gathered: list[list[str]] = [[]] * self.world_size
        dist.all_gather_object(gathered, found_here, group=self.group)
        found = sorted({problem for problems in gathered for problem in problems})
        if self.rank == 0:
            for problem in found:
                self.report(f"warning: damaged checkpoint: {problem}")
        step = parse_step(folder)
        if not found and step is not None and folder == self.run.step(step):
            self._whole.add(step)
        return found

    def _make_temporary(self, step: int) -> Path:
        attempt = f"{os.environ.get('SLURM_JOB_ID', 'local')}.{os.getpid()}.{time.time_ns()}"
        temporary = self.run.checkpoints / f"{rewind.TEMPORARY}{self.run.step(step).name}.{attempt}"
        with self.guard():
            temporary.mkdir(parents=True)
        return temporary

    def _commit(self, temporary: Path, step: int, files: dict[str, FileRecord], state: dict[str, Any]) -> Path:
        write_json(temporary / STATE, state)
        files[STATE] = FileRecord(bytes=(temporary / STATE).stat().st_size, sha256=sha256_of(temporary / STATE))
        manifest = Manifest(
            step=step,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            world_size=self.world_size,
            layout=self.layout,
            version=__version__,
            files=dict(sorted(files.items())),
        )
        write_manifest(temporary, manifest)
        _sync_folder(temporary)
        final = self.run.step(step)
        with self.guard():
            if moved := rewind.set_aside(self.run, step - 1):  # this start put nothing there
                self.report(str(moved))
            temporary.rename(final)
        _sync_folder(self.run.checkpoints)
        return final

    def _delete_superseded(self) -> None:
        try:
            for step in rewind.superseded(self.run, self.keep_last, self._whole):
                doomed = rewind.move_away(self.run, step)
                self._whole.discard(step)
                shutil.rmtree(doomed)
            rewind.remove_leftovers(self.run)
        except (OSError, CheckpointError) as error:
            text = error if isinstance(error, CheckpointError) else f"{error.filename}: {reason(error)}"
            self.report(f"warning: an older checkpoint cannot be deleted: {text}")

    def _together(self, action: Callable[[], _T]) -> _T:
        """Run an action on rank 0; give its result, or raise its error, on every rank."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except CheckpointError as error:
                outcome[1] = str(error)
            except OSError as error:
                outcome[1] = f"{error.filename or self.run.checkpoints}: {reason(error)}"
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise CheckpointError(outcome[1])
        result: _T = outcome[0]
        return result

    def _on_each_rank(self, action: Callable[[], _T]) -> _T:
        """Run an action on every rank; where one of them fails, raise its error on all."""
        result, failure = None, None
        try:
            result = action()
        except CheckpointError as error:
            failure = str(error)
        failures: list[str | None] = [None] * self.world_size
        dist.all_gather_object(failures, failure, group=self.group)
        if first := next(filter(None, failures), None):
            raise CheckpointError(first)
        return cast(_T, result)


def _reader_of(folder: Path, tensors: Mapping[str, Tensor]) -> SafeReader:
    reader = SafeReader(folder)
    reader.expect(tensors)
    return reader


def _sync_folder(folder: Path) -> None:
    """Make renames and new files in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
