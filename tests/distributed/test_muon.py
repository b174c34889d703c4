"""Muon on any layout is Muon in one plain process, with torch's own as the reference; its state is resharded."""

import math
from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.model.architecture import ModelSection, row_of
from megatrain.optim.muon import MuonSection
from megatrain.run.directory import RunDir
from tests.distributed import layouts
from tests.distributed.layouts import (
    RATE,
    Layout,
    Run,
    model_section,
    snapshot_of,
    store_of,
)
from tests.distributed.ranks import RankPool
from tests.distributed.test_parity import TOLERANCE

pytestmark = pytest.mark.distributed

STEPS, SAVED_AT = 12, 4
SECTION = MuonSection(learning_rate=RATE)
LAYOUTS = [
    Layout(0, 2, 1),
    Layout(1, 1, 2, "bf16"),
    Layout(2, 1, 1, context=2),
    Layout(3, 2, 1, sequence_parallel=True),
]
FULL = [
    *(Layout(zero, 1, 2, precision) for zero in (0, 1, 2, 3) for precision in ("fp32", "bf16")),
    *(Layout(zero, 2, 1) for zero in (0, 1, 2, 3)),
    Layout(1, 2, 1, sequence_parallel=True),
    Layout(1, 2, 2, "bf16", sequence_parallel=True),
    Layout(3, 2, 2, "bf16"),
    Layout(0, 2, 2),
    Layout(3, 2, 1, context=2, sequence_parallel=True),
    Layout(1, 1, 1, context=2),
    Layout(2, 2, 1, context=2, tied=True),
    Layout(3, 1, 4),
]
FULL = [layout for layout in FULL if layout not in LAYOUTS]


def trained(layout: Layout, elements_in_a_round: int | None = None) -> list[tuple[float, float]]:
    from megatrain.parallel import matrix_exchange

    with pytest.MonkeyPatch.context() as patched:
        if elements_in_a_round:
            patched.setattr(matrix_exchange, "ROUND_ELEMENTS", elements_in_a_round)
        return Run(layout, SECTION).train(0, STEPS)


def optimizers_of(model: torch.nn.Module, section: ModelSection) -> list[torch.optim.Optimizer]:
    """torch's Muon for hidden matrices, its AdamW for the rest."""
    named = dict(model.named_parameters())
    hidden = [p for name, p in named.items() if row_of(section, name).is_hidden_matrix]
    rest = [p for name, p in named.items() if not row_of(section, name).is_hidden_matrix]
    decay = SECTION.weight_decay
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=0.0, betas=SECTION.betas, eps=SECTION.eps),
    ]


def plain_run(precision: str, tied: bool) -> list[tuple[float, float]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's Muon iterates in bf16 only
        return layouts.plain_run(precision, tied, steps=STEPS, optimizers_of=optimizers_of)


@pytest.fixture(scope="module")
def reference() -> dict:
    made: dict[tuple[str, bool], list[tuple[float, float]]] = {}

    class Reference(dict):
        def __missing__(self, key: tuple[str, bool]) -> list[tuple[float, float]]:
            made[key] = self[key] = plain_run(*key)
            return made[key]

    return Reference()


def assert_alike(got: list, expected: list, precision: str) -> None:
    for step, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        for what, a, b, tolerance in zip(("loss", "norm"), mine, theirs, TOLERANCE[precision], strict=True):
            assert math.isclose(a, b, rel_tol=tolerance), f"{what} at step {step}"


@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.full) for layout in FULL)], ids=str
)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, layout: Layout, reference: dict) -> None:
    results = ranks.run(layout.world_size, trained, layout)
    assert all(result == results[0] for result in results), "every rank reports the same"
    assert_alike(results[0], reference[layout.precision, layout.tied], layout.precision)


@pytest.mark.parametrize("layout", [Layout(0, 1, 2), Layout(3, 2, 1)], ids=str)
def test_in_rounds(ranks: RankPool, layout: Layout, reference: dict) -> None:
    """Room for a matrix or two at a time."""
    found, *_ = ranks.run(layout.world_size, trained, layout, 2 * 72 * 88)
    assert_alike(found, reference["fp32", False], "fp32")


def test_it_learns_more_than_adamw_at_the_same_rate(ranks: RankPool, reference: dict) -> None:
    (adamw,) = ranks.run(1, trained_by_adamw, Layout(0, 1, 1))
    muon = reference["fp32", False]
    assert muon[0][0] == pytest.approx(adamw[0][0], rel=1e-6), "from the same start"
    assert muon[-1][0] < adamw[-1][0] - 0.1


def trained_by_adamw(layout: Layout) -> list[tuple[float, float]]:
    return Run(layout).train(0, STEPS)


def save_and_go_on(layout: Layout, folder: str) -> list[tuple[float, float]]:
    run = Run(layout, SECTION)
    run.train(0, SAVED_AT)
    store_of(run, folder).save(snapshot_of(run, SAVED_AT))
    return run.train(SAVED_AT, STEPS)


def load_and_go_on(layout: Layout, folder: str, again: str) -> list[tuple[float, float]]:
    run = Run(layout, SECTION)
    store_of(run, folder).load(RunDir(folder).step(SAVED_AT), run.engine.sharded_state())
    run.engine.after_load(optimizer_step=SAVED_AT)
    store_of(run, again).save(snapshot_of(run, SAVED_AT))
    return run.train(SAVED_AT, STEPS)


def test_a_checkpoint_goes_on_under_other_layouts(ranks: RankPool, tmp_path: Path) -> None:
    first = str(tmp_path / "first")
    expected = ranks.run(2, save_and_go_on, Layout(1, 1, 2), first)[0]
    before = read_tensors(RunDir(first).step(SAVED_AT))
    kinds = {name: {key.split(".")[0] for key in before if key.endswith(f".{name}")} for name in parameters(before)}
    for name, found in kinds.items():
        hidden = row_of(model_section(), name).is_hidden_matrix
        assert found == {"weight", *(["momentum_buffer"] if hidden else ["exp_avg", "exp_avg_sq"])}, name
    for layout in (Layout(0, 2, 1), Layout(3, 1, 2)):
        again = str(tmp_path / str(layout))
        assert_alike(ranks.run(2, load_and_go_on, layout, first, again)[0], expected, "fp32")
        after = read_tensors(RunDir(again).step(SAVED_AT))
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]), name


def parameters(tensors: dict) -> list[str]:
    return [key.removeprefix("weight.") for key in tensors if key.startswith("weight.")]
