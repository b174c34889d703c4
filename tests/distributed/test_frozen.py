"""Frozen parameters have values from the start, are saved and loaded with the rest or left to whoever has them, and a
run that has some resumes bit for bit."""

from unittest.mock import patch

import pytest
import torch

from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, config_of
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUTS = [Layout(0, 1, 2), Layout(1, 1, 2, "bf16"), Layout(2, 2, 1), Layout(3, 1, 2, "bf16")]
SAVED_AT, UNTIL = 2, 4


def frozen_run(layout: Layout) -> Run:
    """Of which the embedding and the first block stay as they are."""
    from megatrain.train import build

    real = build.build_parallel_model

    def freezing(*arguments, **options):
        model = real(*arguments, **options)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("embedding", "blocks.0.")))
        return model

    with patch.object(build, "build_parallel_model", freezing):
        return Run(layout)


def checkpointer_of(run: Run, folder: str, parameters: str):
    from megatrain.checkpoint.store import CheckpointStore
    from megatrain.train.checkpointing import Checkpointer

    store = CheckpointStore(RunDir(folder), run.mesh.control_group, layout="", keep_last=9, report=print)
    return Checkpointer(config_of(run.layout), run.engine, store, parameters=parameters)


def save_and_go_on(layout: Layout, folder: str, parameters: str) -> tuple[list[tuple[float, float]], int]:
    run = frozen_run(layout)
    run.train(0, SAVED_AT)
    checkpointer_of(run, folder, parameters).save(SAVED_AT, {"position": 8 * SAVED_AT})
    return run.train(SAVED_AT, UNTIL), len(run.engine.sharded_state(for_saving=True, parameters=parameters))


def resume_and_go_on(layout: Layout, folder: str, parameters: str) -> list[tuple[float, float]]:
    run = frozen_run(layout)
    for name, shards in run.engine.sharded_state(weights_only=True).items():
        base = parameters == "trained" and name.startswith(("weight.embedding", "weight.blocks.0."))
        if not base:  # with "trained", a start has these from elsewhere
            shards._flat.fill_(0.5)
    assert checkpointer_of(run, folder, parameters).resume("auto").step == SAVED_AT
    return run.train(SAVED_AT, UNTIL)


@pytest.mark.parametrize("parameters", ["all", "trained"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_with_frozen_parameters_resumes_bit_for_bit(
    ranks: RankPool, tmp_path, layout: Layout, parameters: str
) -> None:
    went_on = ranks.run(2, save_and_go_on, layout, str(tmp_path), parameters)
    resumed = ranks.run(2, resume_and_go_on, layout, str(tmp_path), parameters)
    assert resumed == [losses for losses, _ in went_on]


def test_trained_alone_is_less(ranks: RankPool, tmp_path) -> None:
    saved = {
        kind: ranks.run(2, save_and_go_on, LAYOUTS[1], str(tmp_path / kind), kind)[0][1] for kind in ("all", "trained")
    }
    assert saved["trained"] < saved["all"]


def values(layout: Layout) -> dict[str, tuple[float, ...]]:
    """Of frozen weights, in the model's own memory."""
    run = frozen_run(layout)
    return {
        name: tuple(parameter.detach().float().flatten()[:3].tolist())
        for name, parameter in run.engine._engine.module.named_parameters()
        if not parameter.requires_grad
    }


def test_frozen_parameters_begin_as_trained_ones_would(ranks: RankPool) -> None:
    (found, *_) = ranks.run(2, values, Layout(1, 1, 2))
    (whole,) = ranks.run(1, values, Layout(0, 1, 1))
    assert found == whole
    assert torch.tensor(found["embedding.weight"]).abs().sum() > 0


def resharded(layout: Layout, folder: str) -> list[tuple[float, float]]:
    return resume_and_go_on(layout, folder, "all")


def test_frozen_parameters_are_read_under_another_layout(ranks: RankPool, tmp_path) -> None:
    (went_on, _), *_ = ranks.run(2, save_and_go_on, Layout(0, 1, 2), str(tmp_path), "all")
    for other in (Layout(3, 1, 2), Layout(1, 2, 1)):
        assert ranks.run(2, resharded, other, str(tmp_path))[0] == [pytest.approx(pair, rel=1e-4) for pair in went_on]
