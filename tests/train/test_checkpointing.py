"""Which checkpoint a start resumes from, and that no start loses one. In one process, without an engine."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.checkpoint import rewind
from megatrain.checkpoint.manifest import verify
from megatrain.checkpoint.snapshot import Snapshot
from megatrain.checkpoint.state import State
from megatrain.checkpoint.store import CheckpointStore
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.attempts import Attempt, newest_step, read_attempts, write_attempts
from megatrain.run.directory import MANIFEST, RunDir
from megatrain.train.checkpointing import Checkpointer
from tests.train.one_start import Engine, Start
from tests.trained import make_config

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


def abandoned(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("abandoned-*/step-*"))


def damage(run: RunDir, step: int) -> None:
    path = run.step(step) / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


class TestGoingBack:
    def test_later_starts_follow_the_branch_that_was_gone_back_to(self, run) -> None:
        Start(run).save(20, 40, 50, 60)
        back = Start(run)
        assert back.resume("40") == 40
        assert run.steps() == [20, 40]
        assert abandoned(run) == ["step-00000050", "step-00000060"]
        (line,) = back.said
        assert re.fullmatch(r"set aside: steps 50, 60, now in (.+)\. Nothing reads it; to delete it: rm -r \1", line)
        # killed before its first checkpoint: the next start, as after a requeue, goes on from there
        assert Start(run).resume() == 40
        assert newest_step(run) == 40
        Start(run).save(45)
        assert Start(run).resume() == 45
        assert verify(next(run.checkpoints.glob("abandoned-*/step-00000060"))) == []

    def test_twice_within_a_second(self, run) -> None:
        Start(run).save(1, 2)
        Start(run).resume("1")
        Start(run).save(2)
        Start(run).resume("1")
        assert abandoned(run) == ["step-00000002", "step-00000002"]

    def test_metrics_follow(self, run) -> None:
        Start(run).save(2, 4)
        run.metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
        Start(run).resume("2")
        assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2]
        (kept,) = run.checkpoints.glob("abandoned-*/metrics.jsonl")
        assert [row["step"] for row in read_metrics(kept)] == [1, 2, 3, 4]

    def test_the_step_that_is_asked_for_must_verify_before_anything_moves(self, run) -> None:
        Start(run).save(1, 2, 3)
        damage(run, 2)
        with pytest.raises(CheckpointError, match="manifest says"):
            Start(run).resume("2")
        with pytest.raises(CheckpointError, match="steps saved: 1, 2, 3"):
            Start(run).resume("7")
        assert run.steps() == [1, 2, 3]

    @pytest.mark.parametrize("wanted", ["yes", "", "-1", "٣", "1.0"])
    def test_what_is_no_step_is_a_mistake(self, run, wanted) -> None:
        with pytest.raises(ConfigError, match="must be auto, must, never, or the step"):
            Start(run).resume(wanted)

    def test_damaged_ones_above_the_one_that_is_taken_are_set_aside(self, run) -> None:
        Start(run).save(15, 20)
        damage(run, 20)
        start = Start(run)
        assert start.resume() == 15
        assert abandoned(run) == ["step-00000020"]
        assert start.said[0].startswith("warning: damaged checkpoint: ")
        assert start.said[1].startswith("set aside: step 20")

    def test_one_that_cannot_be_moved_ends_the_start(self, run, monkeypatch) -> None:
        Start(run).save(1, 2)

        def fail(self, target):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(CheckpointError, match="step-00000002: Permission denied"):
            Start(run).resume("1")

    def test_a_submit_does_it_once(self, run) -> None:
        Start(run).save(1, 2, 3)
        moved = rewind.go_back(run, "2")
        assert moved is not None
        assert moved.steps == [3]
        assert rewind.go_back(run, "auto") is None
        Start(run).save(3)
        assert Start(run).resume() == 3
        damage(run, 2)
        with pytest.raises(CheckpointError, match=r"step-00000002: is not whole"):
            rewind.go_back(run, "2")
        assert run.steps() == [1, 2, 3]


class TestBeginningAnew:
    def test_never_sets_all_aside(self, run) -> None:
        Start(run).save(1, 2)
        start = Start(run)
        assert start.resume("never") == 0
        assert run.steps() == []
        assert abandoned(run) == ["step-00000001", "step-00000002"]
        assert "steps 1, 2" in start.said[0]

    def test_by_the_launcher_the_history_too(self, run) -> None:
        Start(run).save(1)
        run.metrics.write_text('{"step": 99}\n')
        write_attempts(run, [attempt(end_step=1)])
        run.tensorboard.mkdir()
        moved = rewind.begin_anew(run)
        assert moved is not None
        assert {path.name for path in moved.folder.iterdir()} == {
            *("step-00000001", "metrics.jsonl", "attempts.json", "tensorboard"),
        }
        assert read_attempts(run) == []
        assert Start(run).resume() == 0
        assert rewind.begin_anew(run) is None

    @pytest.mark.parametrize("wanted", ["auto", "must"])
    def test_not_where_manifests_are_gone(self, run, wanted) -> None:
        Start(run).save(15, 20)
        for step in (15, 20):
            (run.step(step) / MANIFEST).unlink()
        with pytest.raises(CheckpointError, match="--resume never"):
            Start(run).resume(wanted)
        assert run.step_folders() == [15, 20]

    def test_not_where_the_folder_is_gone(self, run, tmp_path) -> None:
        Start(run).save(20)
        write_attempts(run, [attempt(end_step=20), attempt(end_step=None)])
        run.checkpoints.rename(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=r"attempts\.json tells of step 20 saved"):
            Start(run).resume()
        (tmp_path / "elsewhere").rename(run.checkpoints)
        assert Start(run).resume() == 20

    def test_not_where_the_folder_is_gone_and_only_metrics_know(self, run) -> None:
        run.path.mkdir()
        run.metrics.write_text('{"step": 11}\n')  # every 10 steps a checkpoint
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl reaches step 11"):
            Start(run).resume()
        assert run.metrics.read_text()

    def test_not_where_the_folder_cannot_be_read(self, run) -> None:
        run.path.mkdir()
        run.checkpoints.touch()
        with pytest.raises(CheckpointError, match="checkpoints: cannot be read: Not a directory"):
            Start(run).resume()

    def test_a_run_killed_before_its_first_checkpoint_begins_again(self, run) -> None:
        run.path.mkdir()
        run.metrics.write_text('{"step": 9}\n')
        write_attempts(run, [attempt(end_step=0)])
        assert Start(run).resume() == 0


def attempt(end_step: int | None) -> Attempt:
    ended = None if end_step is None else 2.0
    return Attempt(job=None, host="h", pid=1, ranks=1, started=1.0, start_step=0, ended=ended, end_step=end_step)


class TestRetention:
    def test_a_good_one_is_not_deleted_for_damaged_ones(self, run) -> None:
        Start(run).save(15, 20)
        damage(run, 20)
        start = Start(run, keep_last=1)
        start.resume()
        start.save(18)
        assert run.steps() == [18]
        assert Start(run).resume() == 18

    def test_of_the_branch_that_is_trained(self, run) -> None:
        Start(run).save(10, 20, 30, 40)
        start = Start(run, keep_last=2)
        start.resume("20")
        start.save(21)
        assert run.steps() == [20, 21]
        assert abandoned(run) == ["step-00000030", "step-00000040"]

    def test_damaged_older_ones_neither_count_nor_are_deleted(self, run) -> None:
        Start(run).save(10, 20, 30)
        damage(run, 20)
        start = Start(run, keep_last=2)
        assert start.resume() == 30
        start.save(40)
        assert run.steps() == [20, 30, 40]

    def test_none_is_deleted_before_the_newest_gave_a_finite_loss(self, run) -> None:
        checkpointer = Start(run, keep_last=1).save(1).checkpointer
        checkpointer.save(2, {"position": 16})
        assert run.steps() == [1, 2]
        checkpointer.retain()
        assert run.steps() == [2]

    def test_a_folder_in_the_way_is_set_aside(self, run) -> None:
        start = Start(run).save(1)
        run.step(2).mkdir()
        (run.step(2) / "mine").touch()
        start.save(2)
        assert run.steps() == [1, 2]
        assert next(run.checkpoints.glob("abandoned-*/step-00000002/mine")).is_file()
        assert "set aside: step 2" in start.said[0]

    def test_a_deletion_that_fails_is_a_warning(self, run, monkeypatch) -> None:
        start = Start(run, keep_last=1).save(1)

        def fail(path, **_):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        with monkeypatch.context() as broken:
            broken.setattr(shutil, "rmtree", fail)
            start.save(2)
        assert start.said[0].startswith("warning: an older checkpoint cannot be deleted: ")
        assert "Input/output error" in start.said[0]
        assert run.steps() == [2]
        assert Start(run).resume() == 2


class TestFailedSaves:
    def test_nothing_is_left_and_the_cause_is_said(self, run, monkeypatch) -> None:
        from megatrain.checkpoint import storage

        start = Start(run).save(1)

        def full(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as broken:
            broken.setattr(storage._HashingStream, "write", full)
            with pytest.raises(CheckpointError, match=r"__0_0\.distcp: cannot be written: No space left on device"):
                start.save(2)
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]
        start.save(2)

    def test_nor_when_the_manifest_cannot_be_written(self, run, monkeypatch) -> None:
        def full(*_):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr("megatrain.checkpoint.writer.write_manifest", full)
        with pytest.raises(CheckpointError, match="quota exceeded"):
            Start(run).save(2)
        assert list(run.checkpoints.iterdir()) == []

    def test_what_killed_saves_left_goes_at_the_next_start(self, run) -> None:
        Start(run).save(1)
        for name in (".tmp-step-00000002.local.1.1", ".replaced-step-00000000.1"):
            (run.checkpoints / name).mkdir()
            (run.checkpoints / name / "file").write_bytes(b"x" * 10)
        assert rewind.leftover_bytes(run) == 20
        Start(run).resume()
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]


def test_ranks_beat_while_they_save_verify_and_load(run) -> None:
    """A checkpoint of 70B takes longer than the watchdog waits for a sign of life."""
    beats: list[str] = []
    store = CheckpointStore(run, dist.group.WORLD, layout="", keep_last=9, report=print, beat=beats.append)
    state = State(step=10, model=make_config("tokenizer").model)
    store.save(Snapshot(state, Engine().tensors))
    assert set(beats) == {"saving a checkpoint"}
    beats.clear()
    assert store.find_damage(run.step(10)) == []
    assert set(beats) == {f"verifying {path.name}" for path in run.step(10).iterdir() if path.name != MANIFEST}
    beats.clear()
    store.load(run.step(10), Engine().tensors)
    assert set(beats) == {"loading weight.a", "loading exp_avg.a"}


@pytest.mark.parametrize("wanted", ["auto", "never"])
def test_a_run_that_goes_on_from_another_does_not_begin_from_its_seed(run, wanted) -> None:
    branch = {"checkpoint": "long/checkpoints/step-00000010", "step": 10, "samples": 80}
    config = make_config("tokenizer", run={"name": "tiny", "branch": branch})
    store = CheckpointStore(run, dist.group.WORLD, layout="", keep_last=9, report=print)
    with pytest.raises(CheckpointError, match="step-00000010: is not there: the run goes on from it"):
        Checkpointer(config, Engine(), store).resume(wanted)
