from pathlib import Path

import pytest
import torch

from megatrain.monitor.memory import memory_bytes, memory_reserved_bytes, reset_peak_memory


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
