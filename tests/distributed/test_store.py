"""A checkpoint is whole or not there; a damaged one is found, named and skipped."""

import json
from pathlib import Path

import pytest
import torch

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.manifest import (
    FileRecord,
    list_checkpoints,
    read_manifest,
    sha256_of,
    verify,
    write_manifest,
)
from megatrain.checkpoint.read import read_tensors
from megatrain.run.directory import MANIFEST, RunDir
from tests.distributed.layouts import Layout, Run, config_of
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUT = Layout(1, 1, 2)
FILES = ["__0_0.distcp", "__1_0.distcp", ".metadata", "state.json", MANIFEST]


def checkpointer_of(run: Run, folder: str, said: list[str], keep_last: int = 9):
    from megatrain.checkpoint.store import CheckpointStore
    from megatrain.train.checkpointing import Checkpointer

    store = CheckpointStore(
        RunDir(folder), run.mesh.control_group, layout=str(run.layout), keep_last=keep_last, report=said.append
    )
    return Checkpointer(config_of(run.layout), run.engine, store)


def save_steps(folder: str, steps: list[int], keep_last: int = 9) -> None:
    run = Run(LAYOUT)
    checkpointer = checkpointer_of(run, folder, [], keep_last)
    for previous, step in zip([0, *steps], steps, strict=False):
        run.train(previous, step)
        checkpointer.save(step, {"position": step * 8})
        checkpointer.retain()


def resume(folder: str, wanted: str) -> tuple[int, list[str]]:
    """The step that the run resumes at, and what it says."""
    run, said = Run(LAYOUT), []
    position = checkpointer_of(run, folder, said).resume(wanted)
    return position.step, said


def resume_fails(folder: str, wanted: str) -> str:
    try:
        resume(folder, wanted)
    except CheckpointError as error:
        return str(error)
    return ""


def resume_and_save(folder: str, step: int) -> int:
    run = Run(LAYOUT)
    checkpointer = checkpointer_of(run, folder, [])
    position = checkpointer.resume("auto")
    run.train(position.step, step)
    checkpointer.save(step, {"position": step * 8})
    return position.step


def save_where_one_rank_cannot_write(folder: str) -> str:
    """Rank 1 finds its disk full. Every rank must hear of it, and none may wait for ever."""
    from megatrain.checkpoint import storage

    run = Run(LAYOUT)
    if run.mesh.rank == 1:

        def full(self, data):
            raise OSError(28, "No space left on device")

        storage._HashingStream.write, kept = full, storage._HashingStream.write
    try:
        checkpointer_of(run, folder, []).save(4, {"position": 0})
    except CheckpointError as error:
        return str(error)
    finally:
        if run.mesh.rank == 1:
            storage._HashingStream.write = kept
    return ""


@pytest.fixture
def saved(ranks: RankPool, tmp_path: Path) -> RunDir:
    """Checkpoints of steps 2 and 4."""
    ranks.run(2, save_steps, str(tmp_path), [2, 4])
    return RunDir(tmp_path)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_named_and_the_previous_checkpoint_used(ranks: RankPool, saved: RunDir, name: str) -> None:
    assert {path.name for path in saved.step(4).iterdir()} == set(FILES)
    flip_a_byte(saved.step(4) / name)

    assert any(str(saved.step(4) / name) in problem for problem in verify(saved.step(4)))
    for step, said in ranks.run(2, resume, str(saved), "auto"):
        assert step == 2
        assert not said or any(str(saved.step(4) / name) in line for line in said)
    assert saved.steps() == [2]
    assert len(list(saved.checkpoints.glob("abandoned-*/step-00000004"))) == 1


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(ranks: RankPool, saved: RunDir) -> None:
    flip_a_byte(saved.step(4) / FILES[0])
    for text in ranks.run(2, resume_fails, str(saved), "4"):
        assert FILES[0] in text


def test_nothing_is_begun_anew_over_checkpoints_that_are_all_damaged(ranks: RankPool, saved: RunDir) -> None:
    for step in (2, 4):
        flip_a_byte(saved.step(step) / FILES[0])
    for text in ranks.run(2, resume_fails, str(saved), "auto"):
        assert "no checkpoint that verifies" in text


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(ranks: RankPool, saved: RunDir) -> None:
    before = read_tensors(saved.step(4))
    flip_a_byte(saved.step(4) / FILES[1])
    assert ranks.run(2, resume_and_save, str(saved), 4) == [2, 2]
    assert verify(saved.step(4)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_tensors(saved.step(4)).items())


def test_the_last_few_are_kept(ranks: RankPool, tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".tmp-step-00000001.of-a-crash"
    leftover.mkdir(parents=True)
    ranks.run(2, save_steps, str(tmp_path), [1, 2, 3, 4], 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    assert [info.step for info in list_checkpoints(RunDir(tmp_path))] == [3, 4]


def test_a_rank_that_cannot_write_fails_the_save_on_every_rank(ranks: RankPool, saved: RunDir) -> None:
    for text in ranks.run(2, save_where_one_rank_cannot_write, str(saved)):
        assert "No space left on device" in text
    assert saved.steps() == [2, 4]
    assert verify(saved.step(4)) == []


def test_resume_words(ranks: RankPool, saved: RunDir, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = str(tmp_path_factory.mktemp("empty"))
    assert ranks.run(2, resume, empty, "auto")[0][0] == 0
    assert "no checkpoint" in ranks.run(2, resume_fails, empty, "must")[0]
    assert "steps saved: 2, 4" in ranks.run(2, resume_fails, str(saved), "3")[0]
    step, said = ranks.run(2, resume, str(saved), "2")[0]
    assert (step, saved.steps()) == (2, [2])
    assert said[-1].startswith("set aside: step 4, now in ")
    assert ranks.run(2, resume, str(saved), "never")[0][0] == 0
    assert saved.steps() == []
    assert len(list(saved.checkpoints.glob("abandoned-*/step-*"))) == 2


def test_another_model_is_refused_by_the_field(ranks: RankPool, saved: RunDir) -> None:
    path = saved.step(4) / "state.json"
    state = json.loads(path.read_text())
    state["model"]["rope_theta"] = 5e5
    path.write_text(json.dumps(state))
    manifest = read_manifest(saved.step(4))
    manifest.files["state.json"] = FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))
    write_manifest(saved.step(4), manifest)
    for text in ranks.run(2, resume_fails, str(saved), "auto"):
        assert "model.rope_theta=500000.0, this run has 10000.0" in text
