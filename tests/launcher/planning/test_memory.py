"""Bytes at the peak: the parts add up, the peak is where it should be. tests/distributed/test_memory.py measures."""

import pytest

from launcher.planning.hardware import load_hardware
from launcher.planning.memory import FRAGMENTATION, estimate_memory
from tests.launcher.shapes import MODEL, layout


def memory(precision="bf16", length=1024, model=MODEL, **changes):
    hardware = load_hardware("h100-sxm", 8)
    return estimate_memory(
        model, layout(**changes), sequence_length=length, precision=precision, hardware=hardware, compiled=True
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_total_is_the_sum_of_the_parts(stage):
    found = memory(zero_stage=stage)
    parts = found.to_json()
    assert parts["total"] == found.total == sum(size for part, size in parts.items() if part != "total")
    assert parts["other"] == sum(found.other_to_json().values())
    assert min(found.other_to_json().values()) >= 0


def test_long_sequences_peak_in_the_passes_and_short_ones_in_the_step():
    assert memory(micro_batch_size=64, zero_stage=0).peak in ("forward", "head", "backward")
    assert memory(micro_batch_size=1, length=16, zero_stage=0).peak == "step"


def test_a_start_that_does_not_fit_is_the_peak():
    """Joining the weights, under ZeRO-2 on many ranks."""
    found = memory(
        zero_stage=2, data_parallel=1024, length=16, model=MODEL.model_copy(update={"intermediate_size": 2**22})
    )
    assert found.peak == "start"
    assert found.parameters + found.buffers >= 0.99 * 2 * found.parameters


def test_the_margin_is_a_share_of_what_is_not_allocated_once():
    found = memory()
    moving = found.gradients + found.activations + found.logits + found.buffers
    assert found.margin == pytest.approx(FRAGMENTATION * moving, abs=1)


@pytest.mark.parametrize("change", [{"zero_stage": 2}, {"tensor_parallel": 2}, {"activation_checkpointing": "full"}])
def test_each_way_to_save_memory_saves_memory(change):
    assert memory(**change).total < memory().total
