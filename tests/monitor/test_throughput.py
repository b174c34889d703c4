import pytest

from megatrain.monitor.throughput import Throughput


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rates_are_means_over_the_interval(clock):
    throughput = Throughput(flops_per_token=2e6, world_size=4, peak_flops_per_rank=1e9, clock=clock)
    for _ in range(2):
        throughput.step(tokens=1_000, data_wait_seconds=0.25)
        clock.now += 2.0
    rates = throughput.report()
    assert rates["step_seconds"] == 2.0
    assert (rates["data_wait_seconds"], rates["data_wait_fraction"]) == (0.25, 0.125)
    assert rates["tokens_per_second_per_gpu"] == 125.0
    assert rates["tokens_per_second"] == 500.0
    assert rates["mfu"] == pytest.approx(500.0 * 2e6 / (4 * 1e9))


def test_each_report_begins_a_new_interval(clock):
    throughput = Throughput(1.0, 1, 1.0, clock=clock)
    clock.now += 50.0
    throughput.step(10, 5.0)
    throughput.report()
    clock.now += 1.0
    throughput.step(10)
    rates = throughput.report()
    assert rates["step_seconds"] == 1.0
    assert rates["data_wait_seconds"] == 0.0


def test_evaluation_and_checkpoint_time_is_not_step_time(clock):
    throughput = Throughput(1.0, 1, 1.0, clock=clock)
    for _ in range(2):
        with throughput.paused():
            clock.now += 30.0
    clock.now += 1.0
    throughput.step(10)
    assert throughput.report()["step_seconds"] == 1.0


def test_time_paused_counts_even_when_the_work_failed(clock):
    throughput = Throughput(1.0, 1, 1.0, clock=clock)

    def save_to_a_full_disk() -> None:
        with throughput.paused():
            clock.now += 30.0
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_to_a_full_disk()
    clock.now += 1.0
    throughput.step(10)
    assert throughput.report()["step_seconds"] == 1.0


def test_a_report_without_steps_is_refused(clock):
    with pytest.raises(ValueError, match="no step"):
        Throughput(1.0, 1, 1.0, clock=clock).report()
