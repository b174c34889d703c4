"""Which checkpoints a run has, and whether their bytes are the ones that were written. No torch: `ls` is instant.

A checkpoint is the folder step-N with a MANIFEST.json, written last: the size and SHA-256 of every other file. The
truth is the highest step whose manifest verifies; there is no pointer file that could disagree.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatrain.errors import CheckpointError
from megatrain.run_dir import MANIFEST, RunDir, parse_step, write_json

FORMAT = 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of MANIFEST.json, which holds a hash of itself as well."""

    step: int
    saved_at: str  # UTC, ISO 8601
    world_size: int
    layout: str  # of the ranks that saved it, for people: any layout may read it
    version: str  # of megatrain
    files: dict[str, FileRecord]


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
    content = {"format": FORMAT, **asdict(manifest)}
    write_json(folder / MANIFEST, {**content, "sha256": _content_hash(content)})


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError when there is none, or it is not ours to read."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        intact = content.pop("sha256") == _content_hash(content)
        if content.pop("format") != FORMAT and intact:
            raise CheckpointError(f"{path}: format is not {FORMAT}: written by another version of megatrain")
        if not intact:
            raise ValueError("its hash is another")
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        return Manifest(files=files, **content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path}: is damaged; the checkpoint cannot be trusted") from None


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


def verify(folder: Path, *, part: int = 0, parts: int = 1) -> list[str]:
    """Read the files back and compare; a sentence for each that differs. Empty: all bytes are as written.

    Args:
        part, parts: look only at every parts-th file, from part on, so that ranks can share the reading.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    found = []
    for name in sorted(manifest.files)[part::parts]:
        record, path = manifest.files[name], folder / name
        try:
            size = path.stat().st_size
            if size != record.bytes:
                found.append(f"{path}: has {size} bytes, the manifest says {record.bytes}")
            elif sha256_of(path) != record.sha256:
                found.append(f"{path}: its bytes are not the ones that were written (SHA-256 differs)")
        except OSError as error:
            found.append(f"{path}: cannot be read: {error.strerror}")
    return found


def _content_hash(content: dict[str, Any]) -> str:
    """Of the manifest itself, over its canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def find_checkpoint(path: Path) -> Path:
    """A run folder or a checkpoint folder -> the checkpoint to read: of a run, the newest that verifies.

    Raises:
        CheckpointError: there is none, or the one that was named is damaged.
    """
    if parse_step(path) is not None:
        if wrong := verify(path):
            raise CheckpointError("\n".join(wrong))
        return path
    run = RunDir(path)
    if not run.steps():
        raise CheckpointError(f"{path}: holds no checkpoint (looked for {run.checkpoints}/step-*/{MANIFEST})")
    for step in reversed(run.steps()):
        if not verify(run.step(step)):
            return run.step(step)
    raise CheckpointError(f"{run.checkpoints}: none of {len(run.steps())} checkpoints verifies")


def read_state(folder: Path) -> dict[str, Any]:
    """The small facts beside the tensors: step, position of the data, configuration of the model."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state
