"""`submit --resume`: going back is done once, before the job is queued, however often it is requeued."""

import json

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.runs.rewind import rewind_run
from launcher.slurm import commands
from megatrain.base.errors import CheckpointError, PreflightError
from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, write_manifest
from megatrain.config.file import load_config
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.ordering.position import identity
from megatrain.run.attempts import newest_step
from megatrain.run.directory import RunDir
from tests.launcher.conftest import TINY, write_data


@pytest.fixture
def run(here, monkeypatch) -> RunDir:
    """Checkpoints of steps 5 and 10 of the run in tiny.yaml, and a Slurm that takes every job."""
    write_data(here / "data/train")
    (here / "tiny.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.setattr(commands, "answers", lambda: True)
    monkeypatch.setattr(commands, "test_only", lambda script: None)
    monkeypatch.setattr(commands, "ask", lambda jobs: {})
    monkeypatch.setattr(commands, "submit", lambda script, run, after: "7")
    run = RunDir("runs/tiny")
    for step in (5, 10):
        write_checkpoint(run, step, {"position": step})
    return run


def write_checkpoint(run: RunDir, step: int, loader) -> None:
    model = load_config("tiny.yaml").model
    folder = run.step(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".metadata").write_bytes(b"m")
    (folder / "state.json").write_text(
        json.dumps({"step": step, "loader": loader, "model": model.model_dump(), "seed": 0})
    )
    files = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in (".metadata", "state.json")
    }
    write_manifest(folder, Manifest(step=step, saved_at="", world_size=1, layout="", version="0", files=files))


def submit(*arguments):
    result = CliRunner().invoke(app, ["submit", "tiny.yaml", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_submit_resume_from_a_step_sets_later_checkpoints_aside(run) -> None:
    result = submit("--resume", "5")
    assert "set aside: step 10, now in runs/tiny/checkpoints/abandoned-after-00000005-" in result.stderr
    assert run.steps() == [5]
    assert newest_step(run) == 5
    assert rewind_run(run, "auto") is None


def test_submit_resume_never_sets_all_aside(run) -> None:
    run.metrics.write_text('{"step": 10}\n')
    assert "set aside: steps 5, 10" in submit("--resume", "never").stderr
    assert run.steps() == []
    assert not run.metrics.exists()


def test_submit_dry_run_moves_nothing(run) -> None:
    assert submit("--resume", "5", "--dry-run").exit_code == 0
    assert run.steps() == [5, 10]


def test_refused_submit_moves_nothing(run, monkeypatch) -> None:
    with pytest.raises(PreflightError, match="--resume 7: runs/tiny has no checkpoint of that step; it has: 5, 10"):
        submit("--resume", "7")
    (run.step(5) / ".metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000005: is not whole"):
        submit("--resume", "5")
    assert run.steps() == [5, 10]


def test_submit_of_a_run_whose_checkpoints_are_gone_is_refused(run, here) -> None:
    submit()
    run.checkpoints.rename(here / "elsewhere")
    run.metrics.write_text('{"step": 2000000}\n')
    with pytest.raises(PreflightError, match=r"holds no checkpoint, but metrics\.jsonl reaches step") as caught:
        submit()
    assert caught.value.exit_code == 5


def test_submit_a_cooldown_of_a_run_that_goes_on(run) -> None:
    config = load_config("tiny.yaml")
    hashes = [read_manifest(source.path).manifest_hash for source in config.data.train]
    write_checkpoint(run, 5, {"position": 5, **identity(config.data, config.run.seed, hashes)})
    submit("schedule={name: constant}")  # writes its config.yaml
    tokens = 4 * 8 * 128
    asked = ("run.name=short", "--cooldown-from", "runs/tiny@5", "--cooldown-tokens", str(tokens))
    result = submit("schedule={name: constant}", *asked, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "#SBATCH --job-name=short" in result.stdout
    short = RunDir("runs/short")
    assert not short.path.exists()
    result = submit("schedule={name: constant}", *asked)
    assert result.exit_code == 0, result.output
    assert "4 steps of 1,024 to go from step 5" in result.stdout
    assert (short.steps(), run.steps()) == ([5], [5, 10])
    config = load_config(short.config)
    assert (config.schedule.name, config.run.branch.step, config.training.tokens) == ("cooldown", 5, 5 * 128 + tokens)
