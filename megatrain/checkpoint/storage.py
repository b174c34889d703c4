"""torch's distributed checkpoint on a file system, with two habits of ours.

Writing hashes each file on its way to disk, so that the manifest costs no second read. Reading takes the `.metadata`
file, a pickle, through an unpickler that knows DCP's own classes and nothing else: a checkpoint may come from others.
"""

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from megatrain.checkpoint.manifest import FileRecord
from megatrain.errors import CheckpointError


class HashingWriter(FileSystemWriter):
    """Writes a DCP folder; afterwards `records` holds size and SHA-256 of each file that this rank wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, overwrite=False, sync_files=True)
        self._hashing = _HashingFileSystem()
        self.fs = self._hashing

    def storage_meta(self) -> StorageMeta:
        """Without the path it is written under: the folder is renamed, and may be moved."""
        return StorageMeta(save_id=self.save_id)

    @property
    def records(self) -> dict[str, FileRecord]:
        return self._hashing.records


class SafeReader(FileSystemReader):
    """Reads a DCP folder without trusting its pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except Exception as error:  # damaged bytes can make an unpickler raise nearly anything
            raise CheckpointError(f"{path}: is damaged: {error}") from None
        if not isinstance(metadata, Metadata) or metadata.storage_meta is None:
            raise CheckpointError(f"{path}: has no storage description; it was not written by megatrain")
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _HashingStream:
    """A file that hashes what is written to it. Sequential writes only; anything else would spoil the hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.bytes += view.nbytes
        self._file.write(view)
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
    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        if mode != "wb":
            raise ValueError(f"a checkpoint is written once, from the start; not in mode {mode!r}")
        with open(path, mode) as file:
            stream = _HashingStream(file)
            yield stream
        self.records[Path(path).name] = stream.record()

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


_ALLOWED = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "float16"),
    ("torch", "strided"),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no checkpoint of megatrain needs; refused")
        return super().find_class(module, name)
