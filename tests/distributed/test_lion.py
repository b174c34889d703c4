"""Lion under ZeRO is Lion in one plain process; its state is resharded like Adam's."""

import pytest

from megatrain.optim.lion import LionSection
from tests.distributed.layouts import Layout, Run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 5
LAYOUTS = [Layout(1, 2, 1), Layout(2, 1, 2), Layout(3, 1, 2), Layout(3, 2, 1, context=2, sequence_parallel=True)]


def losses(layout: Layout) -> list[float]:
    return [loss for loss, _ in Run(layout, LionSection(weight_decay=0.5)).train(0, STEPS)]


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> list[float]:
    """One rank, no ZeRO: the optimizer itself, which tests/optim/test_lion.py compares with the paper."""
    (found,) = ranks.run(1, losses, Layout(0, 1, 1))
    return found


def test_it_learns(alone: list[float]) -> None:
    assert alone[-1] < alone[0] - 0.1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_of_one_rank(ranks: RankPool, layout: Layout, alone: list[float]) -> None:
    for found in ranks.run(layout.world_size, losses, layout):
        assert found == pytest.approx(alone, rel=1e-5)


def kept(layout: Layout) -> set[str]:
    run = Run(layout, LionSection())
    run.train(0, 1)
    return {key.split(".")[0] for key in run.engine.sharded_state(for_saving=True)}


def test_a_checkpoint_holds_one_state_per_weight(ranks: RankPool) -> None:
    for found in ranks.run(2, kept, Layout(1, 1, 2)):
        assert found == {"weight", "exp_avg"}
