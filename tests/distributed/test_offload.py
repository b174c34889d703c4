"""ZeRO-Offload: the update on the host gives the losses of one plain process, and any layout resumes any other.

Host and device are the same memory on these ranks; DeepSpeed takes the path of an offloading run all the same.
"""

import math
from pathlib import Path

import pytest
import torch

from launcher.planning.layout import Layout as PlannedLayout
from megatrain.checkpoint.read import read_tensors
from megatrain.optim.lion import LionSection
from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, plain_run
from tests.distributed.memory import MODELS, Case, measure
from tests.distributed.ranks import RankPool
from tests.distributed.test_finite import a_bad_step
from tests.distributed.test_memory import predict
from tests.distributed.test_parity import TOLERANCE
from tests.distributed.test_resharding import SAVED_AT, load_and_go_on, save_and_go_on

pytestmark = pytest.mark.distributed


STEPS = 8


def trained(layout: Layout) -> list[tuple[float, float]]:
    return Run(layout).train(0, STEPS)


def offloading(zero: int, tensor: int, data: int, precision: str = "bf16", micro_batch: int = 2) -> Layout:
    return Layout(zero, tensor, data, precision, micro_batch=micro_batch, offload="cpu")


DEFAULT = [offloading(2, 1, 2), offloading(3, 2, 1, "fp32")]
FULL = [
    offloading(zero, tensor, data, precision, micro)
    for zero in (1, 2, 3)
    for precision in ("fp32", "bf16")
    for tensor, data, micro in ((1, 2, 4), (1, 2, 1), (2, 1, 4))
]


@pytest.mark.parametrize("layout", [*DEFAULT, *(pytest.param(one, marks=pytest.mark.full) for one in FULL)], ids=str)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, layout: Layout) -> None:
    expected = plain_run(layout.precision, steps=STEPS)
    results = ranks.run(layout.world_size, trained, layout)
    assert all(result == results[0] for result in results), "every rank reports the same"
    assert len(results[0]) == STEPS
    tolerances = TOLERANCE[layout.precision]
    for step, (got, want) in enumerate(zip(results[0], expected, strict=True)):
        for mine, theirs, tolerance in zip(got, want, tolerances, strict=True):
            assert math.isclose(mine, theirs, rel_tol=tolerance), f"step {step}"


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (offloading(2, 1, 2), Layout(3, 1, 2, "bf16")),
        pytest.param(Layout(1, 2, 1, "bf16"), offloading(3, 1, 2), marks=pytest.mark.full),
        pytest.param(offloading(1, 1, 2, "fp32"), offloading(2, 2, 1, "fp32"), marks=pytest.mark.full),
        pytest.param(offloading(3, 1, 2, "fp32"), Layout(0, 1, 1), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_a_checkpoint_is_read_with_and_without(ranks: RankPool, tmp_path: Path, writer: Layout, reader: Layout) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    expected = ranks.run(writer.world_size, save_and_go_on, writer, first)[0]
    got = ranks.run(reader.world_size, load_and_go_on, reader, first, second)[0]
    before, after = (read_tensors(RunDir(folder).step(SAVED_AT)) for folder in (first, second))
    assert {name.split(".")[0] for name in before} == {"weight", "exp_avg", "exp_avg_sq"}
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    tolerance = 1e-5 if writer.precision == "fp32" else 1e-2
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)


def offloads(layout: Layout) -> tuple[bool, bool]:
    """Whether DeepSpeed's optimizer offloads, and whether it took torch's AdamW as it is."""
    zero = Run(layout).engine._engine.optimizer
    inner = zero.optimizer
    return bool(getattr(zero, "cpu_offload", getattr(zero, "offload_optimizer", False))), type(
        inner
    ) is torch.optim.AdamW


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.full), 2, pytest.param(3, marks=pytest.mark.full)])
def test_deepspeed_does_offload(ranks: RankPool, zero: int) -> None:
    assert ranks.run(1, offloads, offloading(zero, 1, 1)) == [(True, True)]
    assert ranks.run(1, offloads, Layout(zero, 1, 1, "bf16")) == [(False, True)]


@pytest.mark.parametrize("zero", [2, pytest.param(1, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)])
def test_an_update_that_is_not_finite_changes_nothing(ranks: RankPool, zero: int) -> None:
    bad = {"added_loss": math.inf}
    assert ranks.run(2, a_bad_step, offloading(zero, 1, 2), bad) == [(math.inf, False, False)] * 2


def lion(layout: Layout) -> list[float]:
    return [loss for loss, _ in Run(layout, LionSection()).train(0, 5)]


@pytest.mark.full
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_another_optimizer_does_as_well(ranks: RankPool, zero: int) -> None:
    (alone,) = ranks.run(1, lion, Layout(0, 1, 1))
    for found in ranks.run(2, lion, offloading(zero, 1, 2, "fp32")):
        assert found == pytest.approx(alone, rel=1e-5)


def planned(zero: int, steps: int, tensor: int = 1) -> PlannedLayout:
    return PlannedLayout(
        tensor_parallel=tensor,
        data_parallel=2,
        zero_stage=zero,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=steps,
        activation_checkpointing="none",
        offload_optimizer="cpu",
    )


CASES = [
    Case(name=name, model=MODELS[name], layout=planned(zero, steps), sequence_length=64, precision=precision)
    for name, zero, steps, precision in (
        ("wide", 2, 1, "bf16"),
        ("wide", 3, 2, "bf16"),
        ("wide", 1, 1, "bf16"),
        ("wide", 1, 2, "bf16"),
        ("wide", 1, 2, "fp32"),
        ("wide", 2, 1, "fp32"),
        ("deep", 2, 1, "bf16"),
        ("deep", 2, 2, "fp32"),
        ("deep", 3, 1, "fp32"),
    )
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.full if i > 0 else ()) for i, case in enumerate(CASES)], ids=str
)
def test_the_bytes_of_device_and_host_are_there(ranks: RankPool, case: Case) -> None:
    measured, plan = ranks.run(2, measure, case)[0], predict(case)
    assert plan.tensors == pytest.approx(measured.peak, rel=0.07)
    assert plan.total - plan.process >= measured.peak, "with its margin, it holds what the run allocates"
