"""A byte that is not as it was written is found, named, and passed over."""

import subprocess
import sys

import pytest

from megatrain.checkpoint.manifest import (
    find_checkpoint,
    list_checkpoints,
    read_manifest,
    read_state,
    verify,
)
from megatrain.errors import CheckpointError
from megatrain.run_dir import MANIFEST

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
    with pytest.raises(CheckpointError, match="damaged"):
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

    def test_a_damaged_newest_is_passed_over(self, run, make_checkpoint) -> None:
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


def test_state_is_read_back(make_checkpoint) -> None:
    folder = make_checkpoint(10)
    (folder / "state.json").write_text('{"step": 10, "loader": {"position": 80}}')
    assert read_state(folder)["loader"] == {"position": 80}


def test_torch_is_not_imported() -> None:
    code = "import sys, megatrain.checkpoint.manifest; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
