"""The planner's bytes against those of real ranks. benchmarks/planning.py compares many more pairs."""

import pytest

from launcher.planning.factors import factor_bytes, updating_bytes
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from launcher.planning.matrices import buffer_bytes
from launcher.planning.memory import MemoryEstimate, estimate_memory
from launcher.planning.zero import local_parameters, zero_bytes
from megatrain.optim.adafactor import AdafactorSection
from megatrain.optim.muon import MuonSection
from tests.distributed.memory import CASES, MODELS, OFFLOADED, SOME_BLOCKS, Case, measure, started
from tests.distributed.memory_families import OTHER_FAMILIES
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed


def predict(case: Case) -> MemoryEstimate:
    return estimate_memory(
        case.model,
        case.layout,
        sequence_length=case.sequence_length,
        precision=case.precision,
        hardware=load_hardware("cpu", 1),
    )


@pytest.mark.parametrize(
    "case",
    [
        *CASES[:-2:12],
        SOME_BLOCKS[0],
        *(pytest.param(case, marks=pytest.mark.full) for case in (*CASES[6:-2:12], *SOME_BLOCKS[1:], *OFFLOADED)),
    ],
    ids=str,
)
def test_predicted_bytes_are_there(ranks: RankPool, case) -> None:
    measured, predicted = ranks.run(case.layout.world_size, measure, case)[0], predict(case)
    assert predicted.parameters == pytest.approx(measured.parameters, rel=0.01)
    assert predicted.tensors == pytest.approx(measured.peak, rel=0.1)
    zero = zero_bytes(case.model, case.layout, case.precision)
    assert zero.standing + zero.starting == pytest.approx(measured.start, rel=0.01)
    assert predicted.total - predicted.process >= measured.peak, "with its margin, it holds what the run allocates"


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if i % 4 == 0 else pytest.mark.full) for i, case in enumerate(OTHER_FAMILIES)],
    ids=str,
)
def test_the_bytes_of_other_families_are_there(ranks: RankPool, case) -> None:
    measured, predicted = ranks.run(case.layout.world_size, measure, case)[0], predict(case)
    print(f"{case.name}: {predicted.tensors:,} ({predicted.peak}) of {measured.peak:,} ({measured.moment})")
    assert predicted.tensors == pytest.approx(measured.peak, rel=0.1)


@pytest.mark.parametrize(("stage", "tensor", "precision"), [(0, 1, "bf16"), (3, 2, "fp32")])
def test_what_muon_exchanges_is_in_the_plan(ranks: RankPool, stage: int, tensor: int, precision: str) -> None:
    layout = Layout(
        tensor_parallel=tensor,
        data_parallel=2 // tensor,
        zero_stage=stage,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
        optimizer=MuonSection(),
    )
    case = Case(name="deep", model=MODELS["deep"], layout=layout, sequence_length=32, precision=precision)
    measured = max(one.step for one in ranks.run(2, measure, case))
    zero, buffers = zero_bytes(case.model, layout, precision), buffer_bytes(case.model, layout, "cpu")
    assert zero.standing + zero.stepping + buffers == pytest.approx(measured, rel=0.02)
    assert buffers > 0.2 * measured


@pytest.mark.full
@pytest.mark.parametrize(
    ("stage", "tensor", "precision"), [(0, 1, "bf16"), (1, 1, "bf16"), (2, 1, "fp32"), (3, 2, "fp32")]
)
def test_what_adafactor_keeps_is_in_the_plan(ranks: RankPool, stage: int, tensor: int, precision: str) -> None:
    layout = Layout(
        tensor_parallel=tensor,
        data_parallel=2 // tensor,
        zero_stage=stage,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
        optimizer=AdafactorSection(),
    )
    case = Case(name="deep", model=MODELS["deep"], layout=layout, sequence_length=32, precision=precision)
    measured = max(one.step for one in ranks.run(2, measure, case))
    zero, factors = zero_bytes(case.model, layout, precision), factor_bytes(case.model, "adafactor")
    planned = zero.standing + zero.stepping + factors + updating_bytes(case.model, layout)
    print(f"{layout}: {planned:,.0f} of {measured:,} while updating")
    assert planned == pytest.approx(measured, rel=0.05)


def test_eight_ranks_build_a_partitioned_model_within_the_plan(ranks: RankPool) -> None:
    """None of them has room for the model that they build."""
    layout = Layout(
        tensor_parallel=1,
        data_parallel=8,
        zero_stage=3,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
    )
    case = Case(name="wide", model=MODELS["wide"], layout=layout, sequence_length=64, precision="bf16")
    zero = zero_bytes(case.model, layout, "bf16")
    assert zero.standing + zero.starting < 4 * local_parameters(case.model, 1), "less than its weights in fp32"
    for peak, building in ranks.run(8, started, case):
        assert peak <= 1.01 * (zero.standing + zero.starting)
        assert building <= 2 * (local_parameters(case.model, 1) / 8 + 4096 * 512) * 1.01, "one parameter at a time"
