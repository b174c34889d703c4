import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatrain.config import OptimizerSection, ScheduleSection
from megatrain.train.schedule import learning_rate

PEAK = 2e-3
OPTIMIZER = OptimizerSection(learning_rate=PEAK)


def rates(total, **schedule):
    section = ScheduleSection(**schedule)
    return [learning_rate(step, total, OPTIMIZER, section) for step in range(total)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warmup_is_a_line_to_the_peak(name) -> None:
    assert rates(20, name=name, warmup_steps=4)[:4] == pytest.approx([PEAK * n / 4 for n in (1, 2, 3, 4)])


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("minimum", [0.0, 0.1, 1.0])
def test_decay_ends_at_the_minimum(name, warmup, minimum) -> None:
    got = rates(40, name=name, warmup_steps=warmup, minimum_ratio=minimum)
    assert got[-1] == pytest.approx(minimum * PEAK)
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
    assert max(got) <= PEAK


def test_linear_is_a_line_and_cosine_a_half_wave() -> None:
    linear = rates(100, name="linear", minimum_ratio=0.2)
    cosine = rates(100, name="cosine", minimum_ratio=0.2)
    for step in range(100):
        done = (step + 1) / 100
        assert linear[step] == pytest.approx(PEAK * (1 - 0.8 * done))
        assert cosine[step] == pytest.approx(PEAK * (0.6 + 0.4 * math.cos(math.pi * done)))


def test_constant_stays() -> None:
    assert set(rates(30, name="constant", warmup_steps=10, minimum_ratio=0.0)[9:]) == {PEAK}


def test_a_run_of_warmup_alone() -> None:
    assert rates(5, name="cosine", warmup_steps=5)[-1] == pytest.approx(PEAK)
    assert rates(1, name="cosine")[0] == pytest.approx(0.1 * PEAK)


@given(
    total=st.integers(1, 10**7),
    data=st.data(),
    name=st.sampled_from(["cosine", "linear", "constant"]),
    minimum=st.floats(0, 1),
)
def test_every_rate_lies_between_nothing_and_the_peak(total, data, name, minimum) -> None:
    warmup = data.draw(st.integers(0, total))
    step = data.draw(st.integers(0, total + 100))  # a run that is made longer starts beyond its first end
    section = ScheduleSection(name=name, warmup_steps=warmup, minimum_ratio=minimum)
    rate = learning_rate(step, total, OPTIMIZER, section)
    lowest = PEAK / warmup if step < warmup else minimum * PEAK
    assert lowest * (1 - 1e-9) <= rate <= PEAK * (1 + 1e-9)
