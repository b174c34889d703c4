"""Write a checkpoint so that it is whole or not there.

Write `.tmp-step-N.<attempt>/`, hashing on the way to disk; gather the hashes; MANIFEST.json last; fsync; rename; fsync
the parent. A crash at any point leaves the earlier checkpoints as they were. What is in the way of a new one is set
aside (rewind.py).
"""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatrain.base.errors import CheckpointError, MegatrainError
from megatrain.base.files import sync_folder, write_json
from megatrain.checkpoint import rewind
from megatrain.checkpoint.collective import Ranks
from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, write_manifest
from megatrain.checkpoint.planner import CompactSavePlanner
from megatrain.checkpoint.snapshot import Snapshot
from megatrain.checkpoint.state import STATE
from megatrain.checkpoint.storage import HashingWriter, cause_of
from megatrain.run.directory import RunDir
from megatrain.version import __version__


class CheckpointWriter:
    """See `CheckpointStore` for its arguments."""

    def __init__(
        self,
        run: RunDir,
        ranks: Ranks,
        *,
        layout: str,
        report: Callable[[str], None],
        beat: Callable[[str], None],
        guard: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._run = run
        self._ranks = ranks
        self._layout = layout
        self._report = report
        self._beat = beat
        self._guard = guard
        self._planner = CompactSavePlanner()  # plans do not change within a run

    def write(self, snapshot: Snapshot) -> Path:
        """Commit a checkpoint. One that fails leaves nothing behind. Collective.

        Raises:
            CheckpointError: on every rank, when any rank could not write: which file, and why. Earlier checkpoints are
                untouched.
        """
        temporary = self._ranks.on_first(lambda: self._make_temporary(snapshot.step))
        try:
            return self._write(temporary, snapshot)
        except MegatrainError:
            if self._ranks.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _write(self, temporary: Path, snapshot: Snapshot) -> Path:
        writer = HashingWriter(temporary, self._beat)
        group = self._ranks.group
        try:
            dcp.save(dict(snapshot.tensors), storage_writer=writer, planner=self._planner, process_group=group)
        except CheckpointException as error:
            raise CheckpointError(cause_of(error, temporary)) from error
        gathered: list[dict[str, FileRecord]] | None = [{}] * self._ranks.world_size if self._ranks.is_first else None
        dist.gather_object(writer.records, gathered, dst=0, group=group)

        def commit() -> Path:
            files = {name: record for records in gathered or [] for name, record in records.items()}
            return self._commit(temporary, snapshot, files)

        return self._ranks.on_first(commit)

    def _make_temporary(self, step: int) -> Path:
        attempt = f"{os.environ.get('SLURM_JOB_ID', 'local')}.{os.getpid()}.{time.time_ns()}"
        temporary = self._run.checkpoints / f"{rewind.TEMPORARY}{self._run.step(step).name}.{attempt}"
        with self._guard():
            temporary.mkdir(parents=True)
        return temporary

    def _commit(self, temporary: Path, snapshot: Snapshot, files: dict[str, FileRecord]) -> Path:
        write_json(temporary / STATE, snapshot.state.to_json())
        files[STATE] = FileRecord(bytes=(temporary / STATE).stat().st_size, sha256=sha256_of(temporary / STATE))
        manifest = Manifest(
            step=snapshot.step,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            world_size=self._ranks.world_size,
            layout=self._layout,
            version=__version__,
            files=dict(sorted(files.items())),
        )
        write_manifest(temporary, manifest)
        sync_folder(temporary)
        final = self._run.step(snapshot.step)
        with self._guard():
            if moved := rewind.set_aside(self._run, snapshot.step - 1):  # this start put nothing there
                self._report(str(moved))
            temporary.rename(final)
        sync_folder(self._run.checkpoints)
        return final
