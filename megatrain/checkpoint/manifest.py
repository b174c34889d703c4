"""Which checkpoints a run has, and whether their bytes are the ones that were written. No torch: `ls` is instant.

A checkpoint is the folder step-N with a MANIFEST.json, written last: the size and SHA-256 of every other file. The
truth is the highest step whose manifest verifies; there is no pointer file that could disagree.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, model_validator

from megatrain.base.errors import CheckpointError
from megatrain.base.files import open_regular, parse_model, read_json, reason, write_json
from megatrain.checkpoint.state import STATE
from megatrain.run.directory import MANIFEST, RunDir, locate, parse_step

FORMAT = 1
METADATA = ".metadata"
_CHUNK = 1 << 20
_FileName = Annotated[str, Field(pattern=r"^\.?[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}$")]  # of the folder itself
_Strict = ConfigDict(strict=True, frozen=True, extra="forbid")


class FileRecord(BaseModel):
    model_config = _Strict

    bytes: int = Field(ge=0, le=2**60)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The content of MANIFEST.json, which holds a hash of itself and its format as well."""

    model_config = _Strict

    step: int = Field(ge=0, le=10**15)
    saved_at: str = Field(max_length=100)  # UTC, ISO 8601
    world_size: int = Field(ge=1, le=10**9)
    layout: str = Field(max_length=1000)  # of the ranks that saved it, for people: any layout may read it
    version: str = Field(max_length=100)  # of megatrain
    files: dict[_FileName, FileRecord]  # every other file of the folder

    @model_validator(mode="after")
    def _whole(self) -> "Manifest":
        if missing := {METADATA, STATE} - self.files.keys():
            raise ValueError(f"files: {min(missing)} is not listed")
        if MANIFEST in self.files:
            raise ValueError(f"files: {MANIFEST} cannot list itself")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What `checkpoint ls` shows of one checkpoint."""

    step: int
    path: Path
    bytes: int
    files: int
    world_size: int
    layout: str
    saved_at: str


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"format": FORMAT, **manifest.model_dump(mode="json")}
    write_json(folder / MANIFEST, {**content, "sha256": _content_hash(content)})


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError when there is none, it is damaged or of another step, or it is not ours to read."""
    path = folder / MANIFEST
    content = read_json(path, error=CheckpointError)
    if not isinstance(content, dict) or content.pop("sha256", "") != _content_hash(content):
        raise CheckpointError(f"{path}: is damaged: checksum mismatch; the checkpoint cannot be trusted")
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: format is not {FORMAT}: written by another version of megatrain")
    manifest = parse_model(Manifest, content, path, CheckpointError)
    if parse_step(folder) not in (None, manifest.step):
        raise CheckpointError(f"{path}: is of step {manifest.step:,}, which is not its folder's")
    return manifest


def list_checkpoints(run: RunDir) -> list[CheckpointInfo]:
    """Committed checkpoints, oldest first. Reads manifests only; `verify` reads the bytes. Skips damaged manifests."""
    found = []
    for step in run.steps():
        try:
            manifest = read_manifest(run.step(step))
        except CheckpointError:
            continue
        found.append(
            CheckpointInfo(
                step=step,
                path=run.step(step),
                bytes=sum(record.bytes for record in manifest.files.values()),
                files=len(manifest.files),
                world_size=manifest.world_size,
                layout=manifest.layout,
                saved_at=manifest.saved_at,
            )
        )
    return found


def verify(
    folder: Path, *, part: int = 0, parts: int = 1, beat: Callable[[str], None] = lambda activity: None
) -> list[str]:
    """Read the files back and compare; a sentence for each that differs. Empty: all bytes are as written.

    Args:
        part, parts: look only at every parts-th file, from part on, so that ranks can share the reading.
        beat: called while a file is read, with what is being done.
    """
    try:
        manifest = read_manifest(folder)
        unlisted = sorted({entry.name for entry in folder.iterdir()} - manifest.files.keys() - {MANIFEST})
    except CheckpointError as error:
        return [str(error)]
    except OSError as error:
        return [f"{folder}: cannot be read: {reason(error)}"]
    found = [f"{folder / name}: is not in the manifest; nothing vouches for it" for name in unlisted[part::parts]]
    for name in sorted(manifest.files)[part::parts]:
        if problem := _difference(folder / name, manifest.files[name], beat):
            found.append(problem)
    return found


def has_all_files(folder: Path) -> bool:
    """Whether the manifest can be read and every file has the size that it says. Does not read them."""
    try:
        files = read_manifest(folder).files
        return all((folder / name).stat().st_size == record.bytes for name, record in files.items())
    except (CheckpointError, OSError):
        return False


def _difference(path: Path, record: FileRecord, beat: Callable[[str], None]) -> str | None:
    try:
        with open_regular(path, CheckpointError) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.bytes:
                return f"{path}: has {size} bytes, the manifest says {record.bytes}"
            if _sha256(file, lambda: beat(f"verifying {path.name}")) != record.sha256:
                return f"{path}: its bytes are not the ones that were written (SHA-256 differs)"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {reason(error)}"
    return None


def _content_hash(content: dict[str, Any]) -> str | None:
    """Of the manifest itself, over its canonical JSON. None of what is nested too deeply to be one."""
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    except RecursionError:
        return None


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return _sha256(file)


def _sha256(file: BinaryIO, beat: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        beat()
    return digest.hexdigest()


def find_checkpoint(path: Path) -> Path:
    """A run folder or a checkpoint folder -> the checkpoint to read: of a run, the newest that verifies.

    Raises:
        CheckpointError: there is none, or the one that was named is damaged.
    """
    run, checkpoint = locate(path)
    if checkpoint is not None:
        if wrong := verify(checkpoint):
            raise CheckpointError("\n".join(wrong))
        return checkpoint
    if not run.steps():
        raise CheckpointError(f"{path}: holds no checkpoint (looked for {run.checkpoints}/step-*/{MANIFEST})")
    for step in reversed(run.steps()):
        if not verify(run.step(step)):
            return run.step(step)
    raise CheckpointError(f"{run.checkpoints}: none of {len(run.steps())} checkpoints verifies")
