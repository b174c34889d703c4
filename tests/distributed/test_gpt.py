"""A GPT trains under every kind of layout as on one rank, and on one rank as a plain process of torch alone."""

import pytest

from megatrain.model.families.gpt.section import GPTSection
from tests.distributed.layouts import Layout, Run, plain_run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 6
SECTION = GPTSection(
    num_hidden_layers=3, hidden_size=72, num_attention_heads=4, vocab_size=256, max_position_embeddings=32
)
LAYOUTS = [
    Layout(0, 1, 1),
    Layout(1, 2, 1, checkpointing="full"),
    Layout(2, 2, 2, sequence_parallel=True),
    Layout(3, 2, 1, context=2),
    Layout(3, 2, 1, sequence_parallel=True, compile=True, checkpointing="selective"),
]


def trained(layout: Layout) -> list[tuple[float, float]]:
    return Run(layout, model=SECTION).train(0, STEPS)


@pytest.fixture(scope="module")
def plain(ranks: RankPool) -> list[tuple[float, float]]:
    return plain_run("fp32", section=SECTION, steps=STEPS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, layout: Layout, plain: list[tuple[float, float]]) -> None:
    for found in ranks.run(layout.world_size, trained, layout):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain, strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)
