"""How far a run is, from what its checkpoints say."""

import json

import pytest

from megatrain.base.errors import CheckpointError
from megatrain.base.progress import Progress
from megatrain.checkpoint.progress import progress_of, saved_progress
from megatrain.run.directory import MANIFEST, RunDir


def test_of_a_checkpoint_without_batch_sizes() -> None:
    assert progress_of({"step": 5, "loader": {"position": 40}}, "here") == Progress(5, 40)


def test_of_one_with_them() -> None:
    state = {"step": 7, "loader": {"position": 72}, "batches": [[0, 0, 8], [5, 40, 16]]}
    assert progress_of(state, "here") == Progress(7, 72, ((0, 0, 8), (5, 40, 16)))


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        {"step": 5},
        {"step": 5, "loader": 3},
        {"step": "5", "loader": {"position": 40}},
        {"step": True, "loader": {"position": 40}},
        {"step": -1, "loader": {"position": 40}},
        {"step": 5, "loader": {"position": 1e30}},
        {"step": 5, "loader": {"position": 10**30}},
        {"step": 5, "loader": {"position": 40}, "batches": None},
        {"step": 5, "loader": {"position": 40}, "batches": 8},
        {"step": 5, "loader": {"position": 40}, "batches": [8]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 0]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 0, "8"]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 0, 0]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 0, 9]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 4, 8]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[6, 48, 8]]},
        {"step": 5, "loader": {"position": 40}, "batches": [[0, 0, 8], [3, 20, 10]]},
    ],
)
def test_what_cannot_be_is_refused(state) -> None:
    with pytest.raises(CheckpointError, match=r"^here: "):
        progress_of(state, "here")


def test_a_run_is_as_far_as_the_newest_checkpoint_that_can_be_read(tmp_path) -> None:
    run = RunDir(tmp_path)
    assert saved_progress(run) == Progress()
    for step, text in ((5, json.dumps({"step": 5, "loader": {"position": 40}})), (10, "{"), (20, None)):
        run.step(step).mkdir(parents=True)
        (run.step(step) / MANIFEST).touch()
        if text is not None:
            (run.step(step) / "state.json").write_text(text, encoding="utf-8")
    assert saved_progress(run) == Progress(5, 40)
