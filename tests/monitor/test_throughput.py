from pathlib import Path

import pytest
import torch

from megatrain.monitor.throughput import Throughput, memory_bytes, memory_reserved_bytes, reset_peak_memory


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
    assert rates.step_seconds == 2.0
    assert rates.data_wait_seconds == 0.25
    assert rates.tokens_per_second == 500.0
    assert rates.mfu == pytest.approx(500.0 * 2e6 / (4 * 1e9))


def test_each_report_begins_a_new_interval(clock):
    throughput = Throughput(1.0, 1, 1.0, clock=clock)
    clock.now += 50.0
    throughput.step(10, 5.0)
    throughput.report()
    clock.now += 1.0
    throughput.step(10)
    rates = throughput.report()
    assert rates.step_seconds == 1.0
    assert rates.data_wait_seconds == 0.0


def test_evaluation_and_checkpoint_time_is_not_step_time(clock):
    throughput = Throughput(1.0, 1, 1.0, clock=clock)
    for _ in range(2):
        with throughput.paused():
            clock.now += 30.0
    clock.now += 1.0
    throughput.step(10)
    assert throughput.report().step_seconds == 1.0


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
    assert throughput.report().step_seconds == 1.0


def test_a_report_without_steps_is_refused(clock):
    with pytest.raises(ValueError, match="no step"):
        Throughput(1.0, 1, 1.0, clock=clock).report()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it is the device's memory that counts")
def test_memory_is_the_peak_of_this_process_in_bytes():
    status = Path("/proc/self/status").read_text()
    (peak_kib,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert memory_bytes() == pytest.approx(peak_kib * 1024, rel=0.05)


def test_memory_of_a_gpu_is_told_since_the_last_reset(monkeypatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reset_peak_memory()
    assert memory_reserved_bytes() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    peaks = {"allocated": 8, "reserved": 9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peaks["reserved"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.update(allocated=1, reserved=2))
    assert (memory_bytes(), memory_reserved_bytes()) == (8, 9)
    reset_peak_memory()
    assert (memory_bytes(), memory_reserved_bytes()) == (1, 2)
