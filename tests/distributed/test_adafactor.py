"""Adafactor under every layout is Adafactor in one plain process; its factored state is read under another layout."""

from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.config import ModelSection
from megatrain.optim.adafactor import AdafactorSection
from megatrain.optim.adafactor.optimizer import Adafactor
from megatrain.parallel.whole_sums import of_one_process
from megatrain.run.directory import RunDir
from tests.distributed.layouts import RATE, Layout, Run, model_section, plain_run, snapshot_of, store_of
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS, SHORT = 6, 3
DECAY = 0.1
LAYOUTS = [
    Layout(0, 2, 2, sequence_parallel=True),
    Layout(1, 2, 1),
    Layout(2, 1, 2, micro_batch=4),
    Layout(3, 2, 1, context=2, sequence_parallel=True),
]
MORE = [Layout(0, 1, 2), Layout(1, 1, 2), Layout(2, 2, 2), Layout(3, 1, 2), Layout(3, 2, 2), Layout(1, 1, 1, tied=True)]


def section(**changes: object) -> AdafactorSection:
    return AdafactorSection.model_validate(
        {"weight_decay": DECAY, "learning_rate": RATE, "clip_threshold": 0.5} | changes
    )


def adafactor_of(model: torch.nn.Module, _: ModelSection) -> list[torch.optim.Optimizer]:
    """As transformers and torch have it: tests/optim/test_adafactor.py."""
    decay, plain = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = Adafactor(groups, lr=RATE, clip_threshold=0.5)
    optimizer.exchange = of_one_process(decay + plain)
    return [optimizer]


def measured(layout: Layout, steps: int, **changes: object) -> list[tuple[float, float]]:
    return Run(layout, section(**changes)).train(0, steps)


@pytest.fixture(scope="module")
def plain() -> list[tuple[float, float]]:
    return plain_run("fp32", steps=STEPS, optimizers_of=adafactor_of)


def test_it_learns(plain: list[tuple[float, float]]) -> None:
    assert plain[-1][0] < plain[0][0] - 0.1


@pytest.mark.parametrize(
    "layout", [LAYOUTS[3], *(pytest.param(one, marks=pytest.mark.full) for one in LAYOUTS[:3])], ids=str
)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, layout: Layout, plain: list) -> None:
    for found in ranks.run(layout.world_size, measured, layout, SHORT):
        for (loss, norm), (expected, expected_norm) in zip(found, plain[:SHORT], strict=True):
            assert loss == pytest.approx(expected, rel=1e-5)
            assert norm == pytest.approx(expected_norm, rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("layout", [*LAYOUTS, *MORE], ids=str)
@pytest.mark.parametrize("scale_parameter", [False, True])
def test_losses_of_one_rank(ranks: RankPool, layout: Layout, scale_parameter: bool) -> None:
    given = {"scale_parameter": scale_parameter, "learning_rate": RATE}
    (alone,) = ranks.run(1, with_options, Layout(0, 1, 1, tied=layout.tied), STEPS, given)
    for found in ranks.run(layout.world_size, with_options, layout, STEPS, given):
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in alone], rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_in_bf16(ranks: RankPool, zero: int) -> None:
    (alone,) = ranks.run(1, measured, Layout(0, 1, 1), STEPS)
    for found in ranks.run(2, measured, Layout(zero, 1, 2, "bf16"), STEPS):
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in alone], rel=1e-2)


def partly_frozen(layout: Layout, steps: int) -> list[tuple[float, float]]:
    model = model_section().model_copy(update={"train_layers": 1})
    return Run(layout, section(), model=model).train(0, steps)


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_of_a_model_that_is_partly_frozen(ranks: RankPool, layout: Layout) -> None:
    (alone,) = ranks.run(1, partly_frozen, Layout(0, 1, 1), STEPS)
    assert alone[-1][0] < alone[0][0]
    for found in ranks.run(layout.world_size, partly_frozen, layout, STEPS):
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in alone], rel=1e-5)


def with_options(layout: Layout, steps: int, changes: dict[str, object]) -> list[tuple[float, float]]:
    return measured(layout, steps, **changes)


def saved(layout: Layout, folder: str) -> list[tuple[float, float]]:
    """Saves after two steps, and goes on for one."""
    run = Run(layout, section())
    run.train(0, 2)
    store_of(run, folder).save(snapshot_of(run, 2))
    return run.train(2, 3)


def resumed(layout: Layout, folder: str, again: str) -> list[tuple[float, float]]:
    """Saves what it has read, and goes on for a step."""
    run = Run(layout, section())
    store_of(run, folder).load(RunDir(folder).step(2), run.engine.sharded_state())
    run.engine.after_load(optimizer_step=2)
    store_of(run, again).save(snapshot_of(run, 2))
    return run.train(2, 3)


def test_its_state_is_read_under_another_layout(ranks: RankPool, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    went_on = ranks.run(2, saved, Layout(3, 1, 2), first)
    resumed_there = ranks.run(2, resumed, Layout(1, 2, 1), first, second)
    before, after = (read_tensors(RunDir(folder).step(2)) for folder in (first, second))
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in before} == {"weight", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, tensor in before.items():
        kind, weight = name.split(".", 1)
        shape = before[f"weight.{weight}"].shape
        expected = {"exp_avg_sq_row": shape[:1], "exp_avg_sq_col": shape[1:]}.get(kind, shape)
        assert tensor.shape == expected
        assert (kind == "exp_avg_sq") <= (len(shape) == 1)
    assert resumed_there[0][0][0] == pytest.approx(went_on[0][0][0], rel=1e-5)
