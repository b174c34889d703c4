"""How far a run is, whatever batch sizes led there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.progress import Progress


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 5)), min_size=1, max_size=6), st.integers(1, 64))
def test_samples_at_any_step_are_those_that_were_counted(stretches, later) -> None:
    progress, counted = Progress(), [0]
    for size, steps in stretches:
        for _ in range(steps):
            progress = progress.after_step(size)
            counted.append(counted[-1] + size)
    assert (progress.step, progress.samples) == (len(counted) - 1, counted[-1])
    assert [progress.samples_at(step, BatchSizes(later)) for step in range(len(counted))] == counted
    assert progress.samples_at(progress.step + 3, BatchSizes(later)) == counted[-1] + 3 * later
    assert len(progress.batches) <= len(stretches)


def test_a_size_is_noted_when_it_changes() -> None:
    progress = Progress()
    for size in (8, 8, 16, 16, 8):
        progress = progress.after_step(size)
    assert progress.batches == ((0, 0, 8), (2, 16, 16), (4, 48, 8))


@pytest.mark.parametrize(("step", "samples"), [(0, 0), (3, 24), (10, 80), (12, 112)])
def test_steps_before_sizes_were_recorded_count_as_equal(step, samples) -> None:
    progress = Progress(10, 80).after_step(16).after_step(16)
    assert progress.batches == ((10, 80, 16),)
    assert progress.samples_at(step, BatchSizes(16)) == samples
