"""The planner's bytes against those of real ranks. benchmarks/planning.py compares many more pairs."""

import pytest

from launcher.planning.hardware import load_hardware
from launcher.planning.memory import estimate_memory
from tests.distributed.memory import CASES, measure
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("case", CASES[::6], ids=str)
def test_predicted_bytes_are_there(ranks: RankPool, case) -> None:
    measured = ranks.run(case.layout.world_size, measure, case)[0]
    predicted = estimate_memory(
        case.model,
        case.layout,
        sequence_length=case.sequence_length,
        precision=case.precision,
        hardware=load_hardware("cpu", 1),
    )
    assert predicted.parameters == pytest.approx(measured.parameters, rel=0.01)
    assert predicted.tensors == pytest.approx(measured.peak, rel=0.1)
    assert predicted.total - predicted.process >= measured.peak, "with its margin, it holds what the run allocates"
