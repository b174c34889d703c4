"""`megatrain checkpoint`: it answers for runs, checkpoints and links to them, and vouches for nothing else."""

import json

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from megatrain.base.errors import CheckpointError
from tests.checkpoint.hostile import change_metadata, sign
from tests.trained import make_trained_run


@pytest.fixture
def run(tmp_path):
    return make_trained_run(tmp_path)


def verify(path, *options):
    """The exit code and output; raises what `megatrain` turns into a line and its exit code."""
    result = CliRunner().invoke(app, ["checkpoint", "verify", str(path), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_intact(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "latest").symlink_to(run.step(10))
    monkeypatch.chdir(run.step(10))
    for path in (run.path, run.step(10), tmp_path / "latest", "."):
        code, said = verify(path)
        assert code == 0
        assert "step-00000010: intact" in said


@pytest.mark.parametrize("what", ["a file", "a folder", "a run without", "a folder of a checkpoint"])
def test_nothing_to_vouch_for(tmp_path, run, what) -> None:
    path = {"a file": run.config, "a folder": tmp_path, "a folder of a checkpoint": run.checkpoints}.get(what, run.path)
    if what == "a run without":
        run.step(10).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as caught:
        verify(path)
    assert caught.value.exit_code == 5


def test_a_folder_without_a_manifest_is_damaged(run) -> None:
    (run.step(10) / "MANIFEST.json").unlink()
    code, said = verify(run.path, "--json")
    assert code == 5
    assert "No such file" in json.loads(said)[0]["problems"][0]


def test_signed_bytes_that_describe_no_checkpoint(run) -> None:
    def change(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = "../../outside.distcp"

    change_metadata(run.step(10), change)
    (run.step(10) / "state.json").write_text('{"step": "x"}')
    sign(run.step(10))
    code, said = verify(run.path)
    assert code == 5
    assert "no data file here" in said
    assert "state.json: step: 'x'" in said


def test_ls_names_what_it_cannot_list(run) -> None:
    run.step(20).mkdir()
    result = CliRunner().invoke(app, ["checkpoint", "ls", str(run.path)])
    assert result.exit_code == 0
    assert "step        10" in result.stdout
    assert "step-00000020: has no manifest that can be read" in result.stderr
