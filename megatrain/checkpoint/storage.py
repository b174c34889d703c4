"""torch's distributed checkpoint on a file system, with two habits of ours.

Writing hashes each file on its way to disk, so that the manifest costs no second read. Reading trusts nothing, for a
checkpoint may come from others: `.metadata` is read as data (metadata.py), and of a tensor's file only tensors.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import (
    FileSystemWriter,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    StorageReader,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.futures import Future

from megatrain.base.errors import CheckpointError
from megatrain.base.files import open_regular, reason
from megatrain.checkpoint.manifest import FileRecord
from megatrain.checkpoint.metadata import METADATA, ChunkLocation, StoredTensor, read_stored_tensors
from megatrain.checkpoint.metadata_writer import WrittenChunks, write_metadata
from megatrain.checkpoint.planner import CompactSavePlanner
from megatrain.checkpoint.saved_tensor import read_saved_tensor


class HashingWriter(FileSystemWriter):
    """Writes a DCP folder, as a CompactSavePlanner plans it.

    Afterwards `records` holds size and SHA-256 of each file that this rank wrote.

    Raises:
        CheckpointError: a file cannot be written; says which, and why in the operating system's words.
    """

    def __init__(self, path: Path, beat: Callable[[str], None] = lambda activity: None) -> None:
        super().__init__(path, overwrite=False, sync_files=True)
        self._hashing = _HashingFileSystem(beat)
        self.fs = self._hashing

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[Any]:
        assert isinstance(planner, CompactSavePlanner), "whose plan rank 0 knows in its own form"
        with self._system_errors_said():
            results = super().write_data(plan, planner).wait()
        done: Future[WrittenChunks] = Future()
        done.set_result(planner.written(results))
        return done

    def finish(self, metadata: Metadata, results: list[Any]) -> None:
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_meta = self.storage_meta()
        with self._system_errors_said(), self._hashing.create_stream(Path(self.path) / METADATA, "wb") as file:
            write_metadata(metadata, results, file)
        metadata.state_dict_metadata, metadata.storage_data = {}, None  # DCP sends it to all ranks, which need nothing

    @contextmanager
    def _system_errors_said(self) -> Iterator[None]:
        """torch's writer of archives hides why a write failed, and an exception's chain does not reach other ranks."""
        try:
            yield
        except Exception as error:
            if cause := system_error(error):
                where = cause.filename or self._hashing.writing or self.path
                raise CheckpointError(f"{where}: cannot be written: {reason(cause)}") from error
            raise

    def storage_meta(self) -> StorageMeta:
        """Without the path it is written under: the folder is renamed, and may be moved."""
        return StorageMeta(save_id=self.save_id)

    @property
    def records(self) -> dict[str, FileRecord]:
        return self._hashing.records


class SafeReader(StorageReader):
    """Reads a DCP folder of any origin.

    Raises:
        CheckpointError: as `read_stored_tensors`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = read_stored_tensors(folder)

    def expect(self, wanted: Mapping[str, Tensor]) -> None:
        """Look at these tensors only. Raises CheckpointError unless each is stored, in its shape."""
        wrong = [
            f"{self.folder}: {name}: is {'not stored' if stored is None else f'stored as {stored.shape}'}, "
            f"the model has {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if (stored := self.tensors.get(name)) is None or stored.shape != tuple(tensor.shape)
        ]
        if wrong:
            more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise CheckpointError(f"{wrong[0]}{more}. The model section must be the one that it was saved with")
        self.tensors = {name: self.tensors[name] for name in wanted}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is remembered between loads."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return Path(checkpoint_id).is_dir()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        chunks: dict[int, list[ChunkStorageMetadata]] = {}  # tensors that are cut alike share theirs
        entries: dict[str, Any] = {}
        for name, stored in self.tensors.items():
            if id(stored.chunks) not in chunks:
                chunks[id(stored.chunks)] = [
                    ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in stored.chunks
                ]
            entries[name] = TensorStorageMetadata(
                properties=TensorProperties(dtype=getattr(torch, stored.dtype)),
                size=torch.Size(stored.shape),
                chunks=chunks[id(stored.chunks)],
            )
        return Metadata(state_dict_metadata=entries, storage_data={}, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Each chunk that a part is wanted of is read once; one is in memory at a time."""
        by_chunk: dict[tuple[str, int, int], tuple[ChunkLocation, list[ReadItem]]] = {}
        for item in plan.items:
            offsets = item.storage_index.offset
            place = self.tensors[item.storage_index.fqn].locations[tuple(offsets) if offsets is not None else ()]
            by_chunk.setdefault((place.file, place.offset, place.length), (place, []))[1].append(item)
        file: IO[bytes] | None = None
        opened = None
        try:
            for (name, _, _), (place, items) in sorted(by_chunk.items(), key=lambda entry: entry[0]):
                if file is None or opened != name:
                    if file is not None:
                        file.close()
                    file, opened = open_regular(self.folder / name, CheckpointError), name
                chunk = self._chunk(file, items[0].storage_index.fqn, place)
                for item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(chunk[_slices(item.storage_offsets, item.lengths)])
                    planner.commit_tensor(item, target)
        finally:
            if file is not None:
                file.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _chunk(self, file: IO[bytes], name: str, place: ChunkLocation) -> Tensor:
        path, dtype = self.folder / place.file, self.tensors[name].dtype
        try:
            file.seek(place.offset)
            content = io.BytesIO(file.read(place.length))
            return read_saved_tensor(content, getattr(torch, dtype), place.sizes)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from None
        except Exception as error:  # whatever zipfile and torch make of damaged bytes
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: {name}: cannot be read as a tensor: {first}") from None


def cause_of(error: CheckpointException, folder: Path) -> str:
    """Why DCP failed, as the first rank that failed said it. Of anything that is no error of ours: its type as well."""
    first = next(iter(error.failures.values()))[0]
    if isinstance(first, CheckpointError):
        return str(first)
    if cause := system_error(first):
        return f"{cause.filename or folder}: {reason(cause)}"
    return f"{folder}: {type(first).__name__}: {first}"


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error among an exception and what led to it."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None or (isinstance(seen, OSError) and seen.errno is not None):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _slices(offsets: torch.Size, lengths: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True))


class _HashingStream:
    """A file that hashes what is written to it. Sequential writes only; anything else would spoil the hash."""

    def __init__(self, file: IO[bytes], beat: Callable[[str], None]) -> None:
        self._file = file
        self._beat = beat
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.bytes += view.nbytes
        self._file.write(view)
        self._beat("saving a checkpoint")
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        self._file.flush()  # the caller is about to fsync
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def record(self) -> FileRecord:
        return FileRecord(bytes=self.bytes, sha256=self._digest.hexdigest())


class _HashingFileSystem(FileSystem):
    def __init__(self, beat: Callable[[str], None]) -> None:
        self._beat = beat
        self.records: dict[str, FileRecord] = {}
        self.writing: Path | None = None  # the file that was opened last

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            raise ValueError(f"a checkpoint is written once, from the start; not in mode {mode!r}")
        self.writing = Path(path)
        with open(path, mode) as file:
            stream = _HashingStream(file, self._beat)
            yield stream
        self.records[Path(path).name] = stream.record()
