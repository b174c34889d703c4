"""Lion under ZeRO is Lion in one plain process; its state is resharded like Adam's."""

from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.optim.lion import LionSection
from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, snapshot_of, store_of
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS, SHORT = 5, 3
LAYOUTS = [Layout(1, 2, 1), Layout(2, 1, 2), Layout(3, 1, 2), Layout(3, 2, 1, context=2, sequence_parallel=True)]


def losses(layout: Layout, steps: int) -> list[float]:
    return [loss for loss, _ in Run(layout, LionSection(weight_decay=0.5)).train(0, steps)]


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> list[float]:
    """One rank, no ZeRO: the optimizer itself, which tests/optim/test_lion.py compares with the paper."""
    (found,) = ranks.run(1, losses, Layout(0, 1, 1), STEPS)
    return found


def test_it_learns(alone: list[float]) -> None:
    assert alone[-1] < alone[0] - 0.1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_of_one_rank(ranks: RankPool, layout: Layout, alone: list[float]) -> None:
    for found in ranks.run(layout.world_size, losses, layout, SHORT):
        assert found == pytest.approx(alone[:SHORT], rel=1e-5)


def saved(layout: Layout, folder: str) -> None:
    run = Run(layout, LionSection())
    run.train(0, 2)
    store_of(run, folder).save(snapshot_of(run, 2))


def saved_again(layout: Layout, folder: str, again: str) -> None:
    run = Run(layout, LionSection())
    store_of(run, folder).load(RunDir(folder).step(2), run.engine.sharded_state())
    run.engine.after_load(optimizer_step=2)
    store_of(run, again).save(snapshot_of(run, 2))


def test_its_momentum_is_read_under_another_layout(ranks: RankPool, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    ranks.run(2, saved, Layout(1, 2, 1), first)
    ranks.run(2, saved_again, Layout(3, 1, 2), first, second)
    before, after = (read_tensors(RunDir(folder).step(2)) for folder in (first, second))
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in before} == {"weight", "exp_avg"}
    assert any(tensor.any() for name, tensor in before.items() if name.startswith("exp_avg"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
