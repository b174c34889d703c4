"""What --cooldown-from asks for is checked before anything is started or written."""

import json
import os
import shutil
from pathlib import Path

import pytest

from launcher.planning.plan import make_plan, resolve
from launcher.preflight.changes import check_changes, progress_at_start
from launcher.runs.branch import keep_branch
from launcher.runs.cooldown import Cooldown, with_cooldown
from launcher.runs.prepare import prepare_run
from megatrain.base.errors import CheckpointError, ConfigError, MegatrainError
from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, verify, write_manifest
from megatrain.config.run import BranchSection
from megatrain.run.directory import RunDir

STEP = 8 * 128  # tokens
LONG = ("run.name=long", "training.steps=null", f"training.tokens={100 * STEP}", "schedule={name: wsd}")
SHORT = ("run.name=short", *LONG[1:])


def a_checkpoint(run: RunDir, step: int) -> None:
    folder = run.step(step)
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"tensors")
    state = {"step": step, "loader": {"position": 8 * step}, "batches": [[0, 0, 8]]}
    (folder / "state.json").write_text(json.dumps(state))
    files = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in (".metadata", "state.json")
    }
    write_manifest(folder, Manifest(step=step, saved_at="", world_size=1, layout="", version="0", files=files))


@pytest.fixture
def long(tiny, here):
    """long(*overrides): a run of 100 steps with checkpoints of steps 10, 40 and 90."""

    def of(*overrides: str) -> RunDir:
        config = tiny(*LONG, *overrides)
        run = prepare_run(config, make_plan(config).chosen)
        for step in (10, 40, 90):
            a_checkpoint(run, step)
        return run

    return of


def a_cooldown(source: str = "runs/long@40", tokens: int = 20 * STEP, **changes) -> Cooldown:
    return Cooldown(source, tokens, **{"decay": "sqrt", "min_lr_ratio": 0.0} | changes)


@pytest.mark.parametrize("source", ["runs/long@40", "runs/long/checkpoints/step-00000040"])
def test_the_configuration_that_it_makes(tiny, long, source) -> None:
    long()
    config = with_cooldown(tiny(*SHORT), a_cooldown(source, decay="linear", min_lr_ratio=0.1))
    assert config.run.branch.model_dump() == {
        "checkpoint": "runs/long/checkpoints/step-00000040", "step": 40, "samples": 320
    }  # fmt: skip
    assert config.schedule.model_dump() == {
        "name": "cooldown", "warmup_steps": 0, "start_lr_ratio": 1.0, "decay": "linear", "min_lr_ratio": 0.1
    }  # fmt: skip
    assert (config.training.tokens, config.training.steps) == (60 * STEP, None)


def test_of_a_run_the_newest_checkpoint(tiny, long) -> None:
    long("schedule={name: constant}")
    assert with_cooldown(tiny(*SHORT), a_cooldown("runs/long")).run.branch.step == 90


def test_it_is_planned_from_there_and_nothing_is_written_before(tiny, long) -> None:
    long()
    config = with_cooldown(tiny(*SHORT), a_cooldown())
    resolved, run = resolve(config, make_plan(config).chosen), RunDir("runs/short")
    progress = progress_at_start(resolved, run, "auto")
    assert (progress.step, resolved.steps_left(progress)) == (40, 20)
    said = [finding.text for finding in check_changes(resolved, run, "auto")]
    assert "schedule.name: cooldown, was wsd" in said
    assert said[-1] == "learning rate of step 41: 4.7e-4, was 6.0e-4 before these changes"
    assert not run.path.exists()


def test_the_checkpoint_becomes_the_first_of_the_run(tiny, long) -> None:
    other = long()
    config = with_cooldown(tiny(*SHORT), a_cooldown())
    run = prepare_run(config, make_plan(config).chosen)
    assert run.steps() == [40]
    assert (run.step(40) / ".metadata").samefile(other.step(40) / ".metadata"), "a link takes no room"
    shutil.rmtree(other.path)
    assert verify(run.step(40)) == []
    assert with_cooldown(tiny(*SHORT), a_cooldown()) == config, "it needs the other run no more"


def test_across_disks_it_is_copied(long, monkeypatch) -> None:
    def refuse(*_) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run, branch = RunDir("runs/short"), BranchSection(checkpoint=str(long().step(40)), step=40, samples=320)
    keep_branch(run, branch)
    assert verify(run.step(40)) == []
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000040"]


def test_one_that_is_deleted_meanwhile_leaves_nothing(long) -> None:
    run, other = RunDir("runs/short"), long()
    (other.step(40) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="is gone: its run has deleted that checkpoint by now"):
        keep_branch(run, BranchSection(checkpoint=str(other.step(40)), step=40, samples=320))
    assert not list(run.checkpoints.iterdir())


@pytest.mark.parametrize(
    ("before", "cooldown", "overrides", "said"),
    [
        ((), a_cooldown("runs/none"), (), "--cooldown-from runs/none: is not a run"),
        ((), a_cooldown("runs/long@50"), (), "no whole checkpoint of step 50; steps saved: 10, 40, 90."),
        ((), a_cooldown("runs/long@90"), (), "wsd, decays at step 90 already (learning rate 1.8e-4, peak 6.0e-4)"),
        (("schedule={name: cosine}",), a_cooldown(), (), "cosine, decays at step 40 already"),
        (("schedule.warmup_steps=60",), a_cooldown(), (), "step 40 is in the warm-up of 60 steps"),
        ((), a_cooldown(tokens=STEP + 1), (), f"must be a multiple of {STEP}, the tokens of a step"),
        ((), a_cooldown(tokens=STEP + 1), (), f"Try {STEP} or {2 * STEP}."),
        ((), a_cooldown(min_lr_ratio=1.0), (), "--cooldown-min-lr-ratio 1.0: must be below 1, where the rate begins"),
        ((), a_cooldown(), ("run.name=long",), "Give the cooldown a folder of its own: run.name=long-cooldown."),
    ],
)
def test_what_cannot_be_cooled_down(tiny, long, before, cooldown, overrides, said) -> None:
    long(*before)
    with pytest.raises(MegatrainError) as caught:
        with_cooldown(tiny(*SHORT, *overrides), cooldown)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["model.num_hidden_layers=3", "run.seed=2", "data.sequence_length=64"])
def test_another_model_or_other_data(tiny, long, change) -> None:
    long()
    config = with_cooldown(tiny(*SHORT, change), a_cooldown())
    with pytest.raises(ConfigError, match=r"was started with .*\n.*undo the change"):
        prepare_run(config, make_plan(config).chosen)
    assert not Path("runs/short").exists()


def test_a_cooldown_is_not_begun_anew(tiny, long) -> None:
    long()
    config = with_cooldown(tiny(*SHORT), a_cooldown())
    with pytest.raises(ConfigError, match="--resume never: runs/short goes on from"):
        prepare_run(config, make_plan(config).chosen, resume="never")


def test_nor_taken_from_elsewhere_once_it_has_begun(tiny, long) -> None:
    long()
    config = with_cooldown(tiny(*SHORT), a_cooldown())
    prepare_run(config, make_plan(config).chosen)
    with pytest.raises(ConfigError, match="runs/short went on from runs/long/checkpoints/step-00000040"):
        with_cooldown(tiny(*SHORT), a_cooldown("runs/long@10"))
    longer = with_cooldown(tiny(*SHORT), a_cooldown(tokens=30 * STEP))
    assert (longer.run.branch, longer.training.tokens) == (config.run.branch, 70 * STEP)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("runs/long", None, "sqrt", 0.0), "--cooldown-from: needs --cooldown-tokens as well."),
        ((None, "5", "sqrt", 0.0), "--cooldown-tokens: needs --cooldown-from as well."),
        (("runs/long", "0", "sqrt", 0.0), "--cooldown-tokens 0: must be a number of tokens above 0"),
        (("runs/long", "-5", "sqrt", 0.0), "--cooldown-tokens -5: must be"),
        (("runs/long", "2B", "sqrt", 0.0), "--cooldown-tokens 2B: must be"),
        (("runs/long", "1.5e0", "sqrt", 0.0), "--cooldown-tokens 1.5e0: must be"),
        (("runs/long", "9e99", "sqrt", 0.0), "--cooldown-tokens 9e99: must be"),
        (("runs/long", "5", "step", 0.0), "--cooldown-decay step: must be one of linear, cosine, sqrt."),
    ],
)
def test_options_that_are_none(options, said) -> None:
    with pytest.raises(ConfigError) as caught:
        Cooldown.from_options(*options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("text", "number"), [("2e9", 2 * 10**9), ("2_048", 2048), ("1.5e3", 1500), ("7", 7)])
def test_tokens_as_people_write_them(text, number) -> None:
    assert Cooldown.from_options("runs/long", text, "sqrt", 0.0).tokens == number


def test_without_the_options_nothing_changes(tiny) -> None:
    assert Cooldown.from_options(None, None, "sqrt", 0.0) is None
    assert with_cooldown(tiny(), None) == tiny()
