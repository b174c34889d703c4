from collections.abc import Callable
from pathlib import Path

import pytest

from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, write_manifest
from megatrain.run.directory import RunDir

CONTENTS = {
    "__0_0.distcp": b"first shard" * 50,
    "__1_0.distcp": b"second shard",
    ".metadata": b"m",
    "state.json": b"{}",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def make_checkpoint(run: RunDir) -> Callable[[int], Path]:
    """A committed checkpoint of a few files, none of which holds tensors."""

    def make(step: int) -> Path:
        folder = run.step(step)
        folder.mkdir(parents=True)
        for name, content in CONTENTS.items():
            (folder / name).write_bytes(content)
        files = {name: FileRecord(bytes=len(CONTENTS[name]), sha256=sha256_of(folder / name)) for name in CONTENTS}
        manifest = Manifest(
            step=step, saved_at="2030-01-01T00:00:00+00:00", world_size=2, layout="ZeRO-1", version="0", files=files
        )
        write_manifest(folder, manifest)
        return folder

    return make
