"""What Adafactor costs: rows and columns on every rank, sums over all of them, and no state that ZeRO would divide."""

import pytest

from launcher.planning import factors
from launcher.planning.cost import estimate_step
from launcher.planning.hardware import Link, load_hardware
from launcher.planning.matrices import checkpoint_bytes, state_bytes
from launcher.planning.memory import estimate_memory
from megatrain.model.architecture import parameter_table
from megatrain.optim.adafactor import AdafactorSection
from megatrain.optim.adamw import AdamWSection
from megatrain.parallel import whole_sums
from tests.launcher.shapes import MODEL, layout

ADAFACTOR = AdafactorSection()
SHAPES = [row.shape for row in parameter_table(MODEL)]
FACTORS = 4 * sum(sum(shape) for shape in SHAPES if len(shape) == 2)
NORMS = sum(shape[0] for shape in SHAPES if len(shape) == 1)


def test_factors_are_counted_by_hand() -> None:
    assert factors.factor_bytes(MODEL, "adafactor") == FACTORS > 0
    assert factors.factor_bytes(MODEL, "adamw") == 0
    assert state_bytes(MODEL, layout(optimizer=ADAFACTOR)) == pytest.approx(4 * NORMS / MODEL.parameters)
    assert checkpoint_bytes(MODEL, ADAFACTOR) == 4 * MODEL.parameters + 4 * NORMS + FACTORS


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_rank_has_them_whole(stage: int) -> None:
    assert factors.ELEMENTS_AT_ONCE == whole_sums.ELEMENTS_AT_ONCE

    def optimizer(section: object, data: int) -> int:
        chosen = layout(zero_stage=stage, optimizer=section, data_parallel=data)
        options = {"sequence_length": 128, "precision": "bf16", "hardware": load_hardware("h100-sxm", 8)}
        return estimate_memory(MODEL, chosen, **options).optimizer

    for data in (1, 8):
        owners = data if stage else 1
        saved = (8 * (MODEL.parameters - NORMS) + 4 * NORMS) / owners - FACTORS
        assert optimizer(AdamWSection(), data) - optimizer(ADAFACTOR, data) == pytest.approx(saved, abs=2)


def test_its_sums_take_time_where_there_are_several_ranks() -> None:
    link = Link(bandwidth=100.0, latency=5.0)
    assert factors.seconds(MODEL, layout(optimizer=ADAFACTOR, data_parallel=1), link) == 0
    assert factors.seconds(MODEL, layout(optimizer=AdamWSection()), link) == 0
    assert factors.seconds(MODEL, layout(optimizer=ADAFACTOR), link) > 2 * 5e-6
    options = {
        "sequence_length": 128,
        "precision": "bf16",
        "ranks_per_node": 8,
        "hardware": load_hardware("h100-sxm", 8),
    }
    mine, adamw = (estimate_step(MODEL, layout(optimizer=one), **options) for one in (ADAFACTOR, AdamWSection()))
    assert mine.optimizer > 0
    assert mine.compute == adamw.compute
