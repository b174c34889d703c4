"""Every layout trains as one plain process does: the same losses and gradient norms over 20 steps.

`make test` runs the first steps of layouts in which every two values of two settings meet, and of two that are
compiled, which takes longest; `make test-all` all steps, and the products as well.
"""

import math

import pytest

from tests.covering import covering_array
from tests.distributed.layouts import STEPS, Layout, evaluated, plain_run, trained
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

SETTINGS = {
    "zero": (1, 0, 2, 3),
    "tensor": (2, 1),
    "data": (2, 1),
    "context": (1, 2),
    "precision": ("fp32", "bf16"),
    "sequence_parallel": (False, True),
    "checkpointing": ("none", "selective", "full"),
    "tied": (False, True),
    "micro_batch": (2, 1, 4),
}


def legal(case: dict) -> bool:
    """At most four ranks, or two with the many small messages of micro-batches of one sequence: 160 on four ranks took
    120 s on two slow cores; sequence parallelism needs tensor parallelism."""
    ranks = case["tensor"] * case["data"] * case["context"]
    return ranks <= (2 if case["micro_batch"] == 1 else 4) and case["tensor"] > int(case["sequence_parallel"])


COMPILED = [
    Layout(1, 2, 1, compile=True, sequence_parallel=True, checkpointing="selective"),
    Layout(3, 1, 1, "bf16", context=2, compile=True, tied=True),
]
OFFLOADED = Layout(3, 2, 1, sequence_parallel=True, checkpointing="offload")
EVERY_PAIR = [Layout(**case) for case in covering_array(SETTINGS, legal)] + COMPILED + [OFFLOADED]

LAYOUTS = [
    Layout(zero, tensor, data, precision)
    for precision in ("fp32", "bf16")
    for tensor in (1, 2)
    for data in (1, 2)
    for zero in (0, 1, 2, 3)
]

WHAT_IS_DONE_TO_A_MODEL = [
    Layout(0, 2, 1, sequence_parallel=True),
    Layout(1, 2, 2, sequence_parallel=True),
    Layout(3, 2, 2, sequence_parallel=True, checkpointing="full"),
    Layout(1, 2, 1, checkpointing="selective"),
    Layout(1, 1, 2, compile=True),
    Layout(1, 2, 1, compile=True, sequence_parallel=True, checkpointing="selective"),
    Layout(3, 1, 2, compile=True, checkpointing="full"),
    Layout(1, 1, 2, micro_batch=4),
    Layout(2, 1, 2, micro_batch=1),
    Layout(2, 2, 1, tied=True),
    Layout(3, 1, 2, tied=True),
    Layout(1, 2, 2, "bf16", sequence_parallel=True, compile=True),
    Layout(0, 1, 1, context=2),
    Layout(1, 2, 1, context=2, sequence_parallel=True),
    Layout(3, 2, 1, context=2, checkpointing="full"),
    Layout(1, 1, 1, context=4),
    Layout(1, 1, 2, context=2),
    Layout(2, 1, 1, context=2, micro_batch=4),
    Layout(3, 1, 2, context=2, checkpointing="selective"),
    Layout(0, 1, 1, "bf16", context=2, compile=True),
    Layout(1, 1, 1, "bf16", context=2, checkpointing="full"),
    Layout(1, 1, 2, context=2, compile=True, checkpointing="selective"),
    Layout(3, 1, 2, compile=True, checkpointing="offload"),
    Layout(1, 1, 2, "bf16", context=2, checkpointing="offload"),
    Layout(2, 2, 1, "bf16", compile=True, sequence_parallel=True, checkpointing="offload"),
]

SHORT = 8  # steps: the rate is at its peak after four
TOLERANCE = {"fp32": (2e-6, 2e-5), "bf16": (1e-3, 2e-2)}  # relative, of losses and of gradient norms


FULL = [layout for layout in LAYOUTS + WHAT_IS_DONE_TO_A_MODEL if layout not in EVERY_PAIR]


@pytest.fixture(scope="module")
def reference() -> dict[tuple[str, bool], list[tuple[float, float]]]:
    return {(precision, tied): plain_run(precision, tied) for precision in TOLERANCE for tied in (False, True)}


CASES = [*((layout, SHORT) for layout in EVERY_PAIR), *((layout, STEPS) for layout in EVERY_PAIR + FULL)]


@pytest.mark.parametrize(
    ("layout", "steps"),
    [
        pytest.param(*case, marks=pytest.mark.full if case[1] == STEPS else (), id=f"{case[0]}-{case[1]}")
        for case in CASES
    ],
)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, layout: Layout, steps: int, reference: dict) -> None:
    results = ranks.run(layout.world_size, trained, layout, steps)

    assert all(result == results[0] for result in results), "every rank reports the same"
    expected = reference[layout.precision, layout.tied][:steps]
    assert len(results[0]) == steps
    for step, (got, want) in enumerate(zip(results[0], expected, strict=True)):
        for what, mine, theirs, tolerance in zip(
            ("loss", "gradient norm"), got, want, TOLERANCE[layout.precision], strict=True
        ):
            assert math.isclose(mine, theirs, rel_tol=tolerance), f"{what} at step {step}"


@pytest.mark.parametrize("layout", [Layout(1, 1, 2), Layout(3, 2, 1, context=2, sequence_parallel=True)], ids=str)
def test_an_evaluation_finds_the_same_on_any_ranks(ranks: RankPool, layout: Layout) -> None:
    (alone,) = ranks.run(1, evaluated, Layout(0, 1, 1))
    for loss, tokens in ranks.run(layout.world_size, evaluated, layout):
        assert loss == pytest.approx(alone[0], rel=1e-6)
        assert tokens == alone[1] == 2 * 8 * (32 - 5)


def test_the_reference_learns(reference: dict) -> None:
    """Parity over steps in which nothing happens would prove nothing."""
    losses = [loss for loss, _ in reference["fp32", False]]
    assert losses[-1] < 0.85 * losses[0]
