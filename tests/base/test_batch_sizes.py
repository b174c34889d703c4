"""Batch sizes by sample: every question has the answer of a walk, step by step."""

from hypothesis import given
from hypothesis import strategies as st

from megatrain.base.batch_sizes import BatchSizes

STAGES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=4)


def warmed_up(stages, final):
    until, found = 0, []
    for more, size in stages:
        until += more
        found.append((until, size))
    return BatchSizes(final, tuple(found))


@given(STAGES, st.integers(1, 12), st.integers(0, 60), st.integers(0, 200), st.integers(0, 30))
def test_it_is_a_walk_step_by_step(stages, final, start, end, steps) -> None:
    sizes = warmed_up(stages, final)
    begins = [start]
    while begins[-1] < max(end, start) or len(begins) <= steps:
        at = next((size for until, size in sizes.stages if begins[-1] < until), final)
        assert sizes.at(begins[-1]) == at
        begins.append(begins[-1] + at)
    assert sizes.after(start, steps) == begins[steps]
    assert sizes.steps_until(start, end) == next(number for number, sample in enumerate(begins) if sample >= end)
    for sample in range(start, begins[-1]):
        begin = max(one for one in begins if one <= sample)
        assert sizes.step_of(sample, start) == (begin, sizes.at(begin))


def test_a_step_is_never_cut() -> None:
    sizes = BatchSizes(8, ((5, 2), (12, 4)))
    assert [sizes.after(0, step) for step in range(6)] == [0, 2, 4, 6, 10, 14]
    assert list(sizes.stretches(0)) == [(0, 2, 3), (6, 4, 2), (14, 8, None)]
    assert sizes.every == (2, 4, 8)


def test_one_size_is_all_there_is_without_stages() -> None:
    assert BatchSizes.of(4) == BatchSizes(4)
    assert BatchSizes(4).after(3, 5) == 23
