"""A Llama with norms of query and key heads and with biases trains under every kind of layout as on one rank."""

import pytest

from tests.distributed.layouts import Layout, Run, model_section
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 4
LAYOUTS = [
    Layout(1, 2, 1, checkpointing="full"),
    Layout(2, 2, 2, sequence_parallel=True),
    Layout(3, 2, 1, context=2),
    pytest.param(
        Layout(3, 2, 1, sequence_parallel=True, compile=True, checkpointing="selective"), marks=pytest.mark.full
    ),
]


def trained(layout: Layout) -> list[tuple[float, float]]:
    model = model_section().model_copy(update={"qk_norm": True, "attention_bias": True})
    return Run(layout, model=model).train(0, STEPS)


@pytest.fixture(scope="module")
def alone(ranks: RankPool) -> list[tuple[float, float]]:
    (found,) = ranks.run(1, trained, Layout(0, 1, 1))
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_and_norms_of_one_rank(ranks: RankPool, layout: Layout, alone: list[tuple[float, float]]) -> None:
    for found in ranks.run(layout.world_size, trained, layout):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, alone, strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)
