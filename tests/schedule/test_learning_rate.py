import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatrain.base.progress import Progress
from megatrain.config import PretrainConfig
from megatrain.schedule.learning_rate import learning_rate

PEAK = 2e-3
LENGTH = 32  # of a sequence


def a_run(*, batch=8, schedule, **length):
    return PretrainConfig.model_validate({
        "run": {"name": "x"},
        "model": {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8},
        "data": {"sequence_length": LENGTH, "train": [{"path": "none"}]},
        "optimizer": {"learning_rate": PEAK},
        "schedule": schedule,
        "training": {"global_batch_size": batch, **length},
    })  # fmt: skip


def trained(config, progress, steps=None):
    """The rates of the next steps, to the end or so many, and where they lead."""
    found, batch = [], config.training.global_batch_size
    while config.steps_left(progress) and len(found) != steps:
        found.append(learning_rate(progress, config))
        progress = progress.after_step(batch)
    return found, progress


def rates(total, **schedule):
    return trained(a_run(steps=total, schedule=schedule), Progress())[0]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warmup_is_a_line_to_the_peak(name) -> None:
    assert rates(20, name=name, warmup_steps=4)[:4] == pytest.approx([PEAK * n / 4 for n in (1, 2, 3, 4)])


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("minimum", [0.0, 0.1, 1.0])
def test_decay_ends_at_the_minimum(name, warmup, minimum) -> None:
    got = rates(40, name=name, warmup_steps=warmup, min_lr_ratio=minimum)
    assert got[-1] == pytest.approx(minimum * PEAK)
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
    assert max(got) <= PEAK


def test_linear_is_a_line_and_cosine_a_half_wave() -> None:
    linear = rates(100, name="linear", min_lr_ratio=0.2)
    cosine = rates(100, name="cosine", min_lr_ratio=0.2)
    for step in range(100):
        done = (step + 1) / 100
        assert linear[step] == pytest.approx(PEAK * (1 - 0.8 * done))
        assert cosine[step] == pytest.approx(PEAK * (0.6 + 0.4 * math.cos(math.pi * done)))


def test_constant_stays() -> None:
    assert set(rates(30, name="constant", warmup_steps=10)[9:]) == {PEAK}


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
    step = data.draw(st.integers(0, total - 1))
    schedule = {"name": name, "warmup_steps": warmup} | ({} if name == "constant" else {"min_lr_ratio": minimum})
    rate = learning_rate(Progress(step, 8 * step), a_run(steps=total, schedule=schedule))
    lowest = PEAK / warmup if step < warmup else minimum * PEAK
    assert lowest * (1 - 1e-9) <= rate <= PEAK * (1 + 1e-9)


def by_steps_alone(step, total, name, warmup, minimum):
    """The rate as it was computed when a run could only have one batch size."""
    if step < warmup:
        return PEAK * (step + 1) / warmup
    if name == "constant":
        return PEAK
    done = min(1.0, (step + 1 - warmup) / max(1, total - warmup))
    remaining = 0.5 * (1.0 + math.cos(math.pi * done)) if name == "cosine" else 1.0 - done
    return PEAK * (minimum + (1.0 - minimum) * remaining)


@given(
    batch=st.integers(1, 4096),
    tokens=st.integers(1, 10**12),
    where=st.floats(0, 1),
    warmed=st.floats(0, 1),
    name=st.sampled_from(["cosine", "linear", "constant"]),
    minimum=st.floats(0, 1),
)
def test_with_one_batch_size_the_rates_are_those_of_steps_bit_for_bit(
    batch, tokens, where, warmed, name, minimum
) -> None:
    total = -(-tokens // (batch * LENGTH))
    step, warmup = int(where * (total - 1)), int(warmed * total)
    schedule = {"name": name, "warmup_steps": warmup} | ({} if name == "constant" else {"min_lr_ratio": minimum})
    for length in ({"tokens": tokens}, {"steps": total}):
        config = a_run(batch=batch, schedule=schedule, **length)
        for batches in ((), ((0, 0, batch),)):
            rate = learning_rate(Progress(step, step * batch, batches), config)
            assert rate == by_steps_alone(step, total, name, warmup, minimum)


def test_a_batch_size_that_grows_moves_the_decay_on_by_what_it_reads() -> None:
    """Steps of 2 samples until sample 4, of 4 until 12, then of 8: the rate is a line over the samples."""
    stages = [{"until_sample": 4, "global_batch_size": 2}, {"until_sample": 12, "global_batch_size": 4}]
    schedule = {"name": "linear", "min_lr_ratio": 0.0}
    config = a_run(batch=8, tokens=28 * LENGTH, schedule=schedule, batch_size_warmup=stages)
    progress, found = Progress(), []
    while config.steps_left(progress):
        found.append(learning_rate(progress, config))
        progress = progress.after_step(config.training.batch_sizes.at(progress.samples))
    assert progress.samples == 28
    assert found == pytest.approx([PEAK * (1 - samples / 28) for samples in (2, 4, 8, 12, 20, 28)])
    assert config.total_steps == 6


@pytest.mark.parametrize("batches", [(8, 16), (8, 4), (8, 16, 4), (4, 8, 4), (16, 2, 32)])
@pytest.mark.parametrize("warmup", [0, 3, 9])
def test_a_run_given_in_tokens_ends_with_them_and_at_the_minimum_whatever_its_batches(batches, warmup) -> None:
    tokens, progress, found = 200 * LENGTH, Progress(), []
    for number, batch in enumerate(batches):
        config = a_run(batch=batch, schedule={"name": "linear", "warmup_steps": warmup}, tokens=tokens)
        last = number == len(batches) - 1
        part, progress = trained(config, progress, None if last else 4)
        found += part
    assert tokens <= progress.samples * LENGTH < tokens + batches[-1] * LENGTH
    assert found[-1] == pytest.approx(0.1 * PEAK)
    assert found[warmup:] == sorted(found[warmup:], reverse=True), "the decay knows no jump"
    assert found[:warmup] == pytest.approx([PEAK * (step + 1) / warmup for step in range(min(warmup, len(found)))])


def test_of_twice_the_batch_a_step_goes_twice_as_far() -> None:
    small, large = (a_run(batch=batch, schedule={"name": "linear"}, tokens=160 * LENGTH) for batch in (8, 16))
    first, halfway = trained(small, Progress(), 10)
    rest, end = trained(large, halfway)
    assert (len(first), len(rest), end.samples) == (10, 5, 160)
    assert rest == trained(small, halfway)[0][1::2]


def test_a_run_given_in_steps_decays_by_steps() -> None:
    first, halfway = trained(a_run(batch=8, schedule={}, steps=20), Progress(), 10)
    rest, end = trained(a_run(batch=32, schedule={}, steps=20), halfway)
    assert first + rest == rates(20)
    assert (end.step, end.samples) == (20, 10 * 8 + 10 * 32)


@pytest.mark.parametrize(
    ("decay", "half_way"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - math.sqrt(0.5))], ids=str
)
def test_wsd_is_stable_and_then_decays(decay, half_way) -> None:
    schedule = {"name": "wsd", "warmup_steps": 20, "decay_fraction": 0.25, "decay": decay, "min_lr_ratio": 0.1}
    got = rates(100, **schedule)
    assert set(got[19:80]) == {PEAK}, "up to 25% of the 80 steps after warm-up"
    assert got[80:] == sorted(got[80:], reverse=True)
    assert got[80] < PEAK
    assert got[89] == pytest.approx(PEAK * (0.1 + 0.9 * half_way))
    assert got[-1] == pytest.approx(0.1 * PEAK)


def test_wsd_decays_to_zero_with_the_square_root_unless_told_otherwise() -> None:
    got = rates(100, name="wsd")
    assert got[79] == PEAK
    assert got[84] == pytest.approx(PEAK * (1 - math.sqrt(0.25)))
    assert got[-1] == 0


def test_a_longer_wsd_run_has_the_same_rates_until_its_decay() -> None:
    """What was trained before a decay need not be trained again."""
    short = rates(100, name="wsd", warmup_steps=10)
    assert rates(200, name="wsd", warmup_steps=10)[:82] == short[:82]


def test_inverse_sqrt_halves_at_four_times_the_warmup_whatever_the_length() -> None:
    short, long = (rates(total, name="inverse_sqrt", warmup_steps=25) for total in (100, 300))
    assert short[24] == PEAK
    assert short[99] == pytest.approx(PEAK / 2)
    assert long[:100] == short
    in_tokens, _ = trained(
        a_run(tokens=8 * LENGTH * 100, schedule={"name": "inverse_sqrt", "warmup_steps": 25}), Progress()
    )
    assert in_tokens == pytest.approx(short)


def test_inverse_sqrt_needs_a_warmup() -> None:
    with pytest.raises(ValidationError, match="warmup_steps"):
        a_run(steps=10, schedule={"name": "inverse_sqrt"})
