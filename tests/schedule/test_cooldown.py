"""The rate of a run that goes on from a checkpoint of another and decays."""

import math

import pytest

from megatrain.base.progress import Progress
from megatrain.schedule.learning_rate import learning_rate
from tests.schedule.test_learning_rate import LENGTH, PEAK, a_run, trained

BATCH = 8


def cooled(begin: Progress, steps: int, *, batch: int = BATCH, **schedule):
    """The rates of a cooldown over so many steps, and where they lead."""
    config = a_run(
        batch=batch,
        schedule={"name": "cooldown", **schedule},
        tokens=(begin.samples + steps * batch) * LENGTH,
    )
    branch = {"checkpoint": "long/checkpoints/step", "step": begin.step, "samples": begin.samples}
    run = type(config.run).model_validate({"name": "x", "branch": branch})
    return trained(config.model_copy(update={"run": run}), begin)


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt"])
@pytest.mark.parametrize("minimum", [0.0, 0.1])
def test_the_rates_are_those_of_a_wsd_run_that_was_planned_to_end_there_bit_for_bit(decay, minimum) -> None:
    schedule = {"name": "wsd", "warmup_steps": 10, "decay": decay, "min_lr_ratio": minimum}
    long = a_run(schedule=schedule, tokens=1000 * BATCH * LENGTH)
    planned = a_run(schedule=schedule | {"decay_fraction": 30 / 90}, tokens=100 * BATCH * LENGTH)
    stable, branch = trained(long, Progress(), 70)
    assert stable[10:] == [PEAK] * 60
    rates, end = cooled(branch, 30, decay=decay, min_lr_ratio=minimum)
    assert stable + rates == trained(planned, Progress())[0]
    assert (end.step, end.samples) == (100, 100 * BATCH)
    assert rates[-1] == pytest.approx(minimum * PEAK)


def test_from_inverse_sqrt_it_begins_where_that_was() -> None:
    long = a_run(schedule={"name": "inverse_sqrt", "warmup_steps": 25}, tokens=1000 * BATCH * LENGTH)
    before, branch = trained(long, Progress(), 100)
    rates, _ = cooled(branch, 40, decay="linear", start_lr_ratio=before[-1] / PEAK, min_lr_ratio=0.1)
    assert before[-1] == pytest.approx(PEAK / 2)
    assert rates == pytest.approx([PEAK * (0.5 + (0.1 - 0.5) * (step + 1) / 40) for step in range(40)])


def test_it_goes_by_samples_whatever_the_batch() -> None:
    begin = Progress(50, 50 * BATCH)
    assert cooled(begin, 10, batch=2 * BATCH)[0] == cooled(begin, 20)[0][1::2]
    assert cooled(begin, 20)[0] == pytest.approx([PEAK * (1 - math.sqrt((step + 1) / 20)) for step in range(20)])


def test_other_schedules_know_no_branch() -> None:
    config = a_run(schedule={"name": "linear"}, tokens=100 * BATCH * LENGTH)
    branch = {"checkpoint": "long/checkpoints/step", "step": 50, "samples": 50 * BATCH}
    run = type(config.run).model_validate({"name": "x", "branch": branch})
    at = Progress(60, 60 * BATCH)
    assert learning_rate(at, config.model_copy(update={"run": run})) == learning_rate(at, config)
