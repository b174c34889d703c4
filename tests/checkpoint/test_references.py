"""A checkpoint that another run refers to is kept, until that run is deleted."""

from pathlib import Path

import pytest

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.references import Reference, refer, referred_to
from megatrain.checkpoint.retention import Retention
from megatrain.run.directory import MANIFEST, RunDir


def run_with(folder: Path, *steps: int) -> RunDir:
    run = RunDir(folder)
    for step in steps:
        run.step(step).mkdir(parents=True)
        (run.step(step) / MANIFEST).touch()  # it was saved
    return run


def test_retention_keeps_what_another_run_needs_and_says_so(tmp_path: Path) -> None:
    base, adapter = run_with(tmp_path / "base", 1, 2, 3, 4), run_with(tmp_path / "adapter")
    adapter.path.mkdir()
    refer(base.step(2), adapter)
    lines: list[str] = []
    retention = Retention(base, 1, lines.append)
    for step in (1, 2, 3, 4):
        retention.saved(step)
    retention.delete_superseded()
    assert base.steps() == [2, 4]
    assert lines == [f"kept: step 2, which {adapter.path} refers to"]
    retention.saved(4)
    retention.delete_superseded()
    assert len(lines) == 1, "it is said once"
    adapter.path.rmdir()
    retention.saved(4)
    retention.delete_superseded()
    assert base.steps() == [4], "nobody needs it any more"


def test_a_run_that_cannot_be_seen_from_here_still_counts(tmp_path: Path) -> None:
    assert not Reference(run=str(tmp_path / "not mounted" / "runs" / "adapter"), step=1).is_gone
    assert Reference(run=str(tmp_path / "adapter"), step=1).is_gone


def test_the_folder_of_a_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    refer(tmp_path / "model", RunDir(tmp_path / "adapter"))
    assert list((tmp_path / "model").iterdir()) == []


def test_nothing_is_deleted_where_a_reference_cannot_be_read(tmp_path: Path) -> None:
    base = run_with(tmp_path / "base", 1, 2)
    base.references.mkdir()
    (base.references / "damaged.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged\.json"):
        referred_to(base)
    lines: list[str] = []
    retention = Retention(base, 1, lines.append)
    retention.saved(1)
    retention.saved(2)
    retention.delete_superseded()
    assert base.steps() == [1, 2]
    assert "cannot be deleted" in lines[0]
