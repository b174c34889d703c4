"""The class head of every family trains and is evaluated, whatever the layout, as by a plain process of torch."""

import pytest

from megatrain.model.architecture import ModelSection
from tests.distributed.layouts import GLOBAL_BATCH, SEQUENCE, Layout, Run, plain_run
from tests.distributed.ranks import RankPool
from tests.distributed.test_families import SECTIONS

pytestmark = pytest.mark.distributed

STEPS = 3
LABELS = 256  # each token's label is the next token; the head has 384 rows
SHORT = Layout(2, 2, 1, sequence_parallel=True, checkpointing="full")
LAYOUTS = [
    Layout(3, 2, 1, context=2),
    SHORT,
    Layout(0, 1, 2),
    Layout(1, 2, 2),
]


def section_of(family: str) -> ModelSection:
    return SECTIONS[family].model_copy(update={"num_labels": LABELS})


def trained(family: str, layout: Layout) -> tuple[list[tuple[float, float]], dict[str, float]]:
    from megatrain.tasks.classification import Classification
    from megatrain.train.evaluation import evaluate

    objective = Classification(LABELS)
    run = Run(layout, model=section_of(family), objective=objective)  # type: ignore[arg-type]
    return run.train(0, STEPS), objective.evaluation_metrics(evaluate(run.engine, list(run.micro_batches(STEPS)))[0])


@pytest.fixture(scope="module")
def plain() -> dict[str, list[tuple[float, float]]]:
    return {family: plain_run("fp32", section=section_of(family), steps=STEPS + 1) for family in SECTIONS}


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param(
            family,
            layout,
            marks=() if layout == SHORT or (family, layout) == ("bert", LAYOUTS[0]) else pytest.mark.full,
        )
        for family in SECTIONS
        for layout in LAYOUTS
    ],
    ids=str,
)
def test_losses_norms_and_evaluations_of_a_plain_process(ranks: RankPool, family: str, layout: Layout, plain) -> None:
    found = ranks.run(layout.world_size, trained, family, layout)
    for losses, metrics in found:
        for (loss, norm), (expected_loss, expected_norm) in zip(losses, plain[family][:STEPS], strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)
        assert metrics["validation_loss"] == pytest.approx(plain[family][STEPS][0], rel=2e-6)
        assert metrics["validation_examples"] == GLOBAL_BATCH * SEQUENCE
        assert metrics == found[0][1]
