"""A byte that is not as it was written is found, named, and skipped."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.manifest import (
    find_checkpoint,
    has_all_files,
    list_checkpoints,
    read_manifest,
    verify,
)
from megatrain.checkpoint.rewind import set_aside
from megatrain.run.directory import MANIFEST, RunDir, locate

FILES = ["__0_0.distcp", "__1_0.distcp", ".metadata", "state.json"]


def flip(path, at=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_what_was_written_verifies(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    assert verify(folder) == []
    assert sorted(read_manifest(folder).files) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, "its bytes are not the ones that were written"),
        (lambda path: flip(path, -1), "its bytes are not the ones that were written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, the manifest says"),
        (lambda path: path.write_bytes(b""), "has 0 bytes, the manifest says"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: (path.unlink(), path.mkdir()), ""),
    ],
    ids=["first byte", "last byte", "truncated", "extra byte", "emptied", "missing", "a folder"],
)
def test_damage_is_named(make_checkpoint, name, damage, says) -> None:
    folder = make_checkpoint(10)
    damage(folder / name)
    (problem,) = verify(folder)
    assert problem.startswith(f"{folder / name}: ")
    assert says in problem


def test_every_damaged_file_is_named(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    for name in FILES:
        flip(folder / name)
    assert [problem.split(":")[0] for problem in verify(folder)] == sorted(str(folder / name) for name in FILES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "files": {"a": 3}}',
        b"\xff\xfe",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_manifest_is_named(make_checkpoint, content) -> None:
    folder = make_checkpoint(10)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: is (damaged|not JSON)"):
        read_manifest(folder)
    (problem,) = verify(folder)
    assert problem.startswith(f"{folder / MANIFEST}: ")


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    path = folder / MANIFEST
    original = path.read_bytes()
    for at in range(len(original)):
        flip(path, at)
        assert verify(folder), f"byte {at}"
        path.write_bytes(original)
    assert verify(folder) == []


def test_another_format_is_told_apart_from_damage(make_checkpoint, monkeypatch) -> None:
    with monkeypatch.context() as later_version:
        later_version.setattr("megatrain.checkpoint.manifest.FORMAT", 2)
        folder = make_checkpoint(10)
        assert verify(folder) == []
    with pytest.raises(CheckpointError, match="written by another version"):
        read_manifest(folder)


def signed(folder, **changes):
    """Another manifest, with the hash that it should have."""
    content = {**json.loads((folder / MANIFEST).read_text()), **changes}
    del content["sha256"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": hashlib.sha256(canonical).hexdigest()}))


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "\ud800", "a\nb", "x" * 300, MANIFEST, "pipe\u2028"],
)
def test_a_file_that_is_named_is_a_plain_file_of_the_folder(make_checkpoint, name) -> None:
    folder = make_checkpoint(10)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    signed(folder, files=files | {name: files["state.json"]})
    (problem,) = verify(folder)
    assert problem.startswith(f"{folder / MANIFEST}: files")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": {}}, "files: .metadata is not listed"),
        ({"files": 5}, "files"),
        ({"files": {"state.json": {"bytes": "12", "sha256": "0" * 64}}}, "files.state.json.bytes"),
        ({"files": {"state.json": {"bytes": -1, "sha256": "0" * 64}}}, "files.state.json.bytes"),
        ({"files": {"state.json": {"bytes": 10**400, "sha256": "0" * 64}}}, "files.state.json.bytes"),
        ({"files": {"state.json": {"bytes": 1, "sha256": "0" * 63 + "g"}}}, "files.state.json.sha256"),
        ({"files": {"state.json": {"bytes": 1, "sha256": "0" * 64, "x": 1}}}, "files.state.json.x"),
        ({"step": 7}, "is of step 7, which is not its folder's"),
        ({"step": "10"}, "step"),
        ({"step": -10}, "step"),
        ({"world_size": 0}, "world_size"),
        ({"saved_at": 5}, "saved_at"),
        ({"layout": "x" * 5000}, "layout"),
        ({"another": 1}, "another"),
    ],
)
def test_a_manifest_that_is_not_right_is_named(run, make_checkpoint, changes, says) -> None:
    folder = make_checkpoint(10)
    signed(folder, **changes)
    (problem,) = verify(folder)
    assert problem.startswith(f"{folder / MANIFEST}: ")
    assert says in problem
    assert list_checkpoints(run) == []


def test_a_deep_manifest_is_named(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    for depth in (500, 900, 990, 100_000):
        (folder / MANIFEST).write_text('{"files": ' + "[" * depth + "]" * depth + "}")
        (problem,) = verify(folder)
        assert problem.startswith(f"{folder / MANIFEST}: ")


def test_a_file_that_is_not_listed_is_named(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    (folder / "__2_0.distcp").touch()
    (problem,) = verify(folder)
    assert problem == f"{folder / '__2_0.distcp'}: is not in the manifest; nothing vouches for it"


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_pipe_is_not_waited_for(make_checkpoint, name) -> None:
    folder = make_checkpoint(10)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    (problem,) = verify(folder)
    assert problem == f"{folder / name}: cannot be read: it is a named pipe, not a regular file"


def test_whether_all_files_are_there_is_told_without_reading_them(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    flip(folder / "__0_0.distcp")
    assert has_all_files(folder)
    (folder / "__0_0.distcp").write_bytes(b"x")
    assert not has_all_files(folder)
    assert not has_all_files(folder.parent)


def test_no_manifest_is_no_checkpoint(run, make_checkpoint) -> None:
    make_checkpoint(10)
    (make_checkpoint(20) / MANIFEST).unlink()
    assert run.steps() == [10]
    with pytest.raises(CheckpointError, match="No such file"):
        read_manifest(run.step(20))


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_shares_of_verification_cover_every_file_once(make_checkpoint, parts) -> None:
    folder = make_checkpoint(10)
    for name in FILES:
        flip(folder / name)
    shares = [verify(folder, part=part, parts=parts) for part in range(parts)]
    assert sorted(problem for share in shares for problem in share) == sorted(verify(folder))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class TestFindCheckpoint:
    def test_the_newest_of_a_run(self, run, make_checkpoint) -> None:
        make_checkpoint(10), make_checkpoint(20)
        assert find_checkpoint(run.path) == run.step(20)

    def test_a_damaged_newest_checkpoint_is_skipped_at_resume(self, run, make_checkpoint) -> None:
        make_checkpoint(10), flip(make_checkpoint(20) / "state.json"), (make_checkpoint(30) / MANIFEST).write_text("{")
        assert find_checkpoint(run.path) == run.step(10)

    def test_one_that_was_named_is_taken(self, run, make_checkpoint) -> None:
        make_checkpoint(10), make_checkpoint(20)
        assert find_checkpoint(run.step(10)) == run.step(10)

    def test_one_that_was_named_and_is_damaged_is_refused(self, run, make_checkpoint) -> None:
        make_checkpoint(10), flip(make_checkpoint(20) / "state.json")
        with pytest.raises(CheckpointError, match=r"state\.json: its bytes"):
            find_checkpoint(run.step(20))

    def test_one_that_is_not_there_is_refused(self, run) -> None:
        with pytest.raises(CheckpointError, match="No such file"):
            find_checkpoint(run.step(7))

    def test_links_and_dots_are_followed(self, run, make_checkpoint, tmp_path, monkeypatch) -> None:
        make_checkpoint(10), make_checkpoint(20)
        (tmp_path / "latest").symlink_to(run.step(10))
        (tmp_path / "it").symlink_to(run.path)
        monkeypatch.chdir(run.step(10))
        assert find_checkpoint(tmp_path / "latest") == find_checkpoint(Path()) == run.step(10)
        assert find_checkpoint(tmp_path / "it") == RunDir(tmp_path / "it").step(20)

    def test_one_that_was_set_aside(self, run, make_checkpoint) -> None:
        make_checkpoint(10), make_checkpoint(20)
        run.config.touch()
        moved = set_aside(run, 10)
        assert moved is not None
        assert find_checkpoint(moved.folder / "step-00000020") == moved.folder / "step-00000020"
        assert locate(moved.folder / "step-00000020")[0].path == run.path

    def test_a_run_without_any(self, run) -> None:
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            find_checkpoint(run.path)

    def test_a_run_with_none_that_verifies(self, run, make_checkpoint) -> None:
        flip(make_checkpoint(10) / "state.json")
        with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
            find_checkpoint(run.path)


def test_the_list_is_in_order_and_leaves_out_what_cannot_be_read(run, make_checkpoint) -> None:
    for step in (200, 1000, 30):
        make_checkpoint(step)
    (run.step(200) / MANIFEST).write_text("{")
    listed = list_checkpoints(run)
    assert [info.step for info in listed] == [30, 1000]
    assert listed[0].path == run.step(30)
    assert (listed[0].files, listed[0].bytes) == (4, 550 + 12 + 1 + 2)
    assert (listed[0].world_size, listed[0].layout) == (2, "ZeRO-1")


def test_torch_is_not_imported() -> None:
    code = "import sys, megatrain.checkpoint.manifest; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
