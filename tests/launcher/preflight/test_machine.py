"""A machine that lacks what the ranks need is refused before anything is written."""

import resource

import pytest

from launcher.planning.hardware import GIB, load_hardware
from launcher.preflight import machine
from launcher.preflight.machine import check_limits, check_machine


def said(hardware, *, here=2, starting=True):
    return list(check_machine(load_hardware(hardware, here), ranks=here, here=here, starting=starting))


def test_a_gpu_profile_without_cuda_is_refused():
    (found,) = said("h100-sxm")  # torch really is asked
    assert found.level == "error"
    assert found.text.startswith("cluster.hardware: h100-sxm: torch 2.")
    for part in ("sees no GPU", "built with", "driver: ", "cluster.hardware=cpu"):
        assert part in found.text
    assert "\n" not in found.text


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (None, "torch cannot be imported"),
        ({"why": None, "gpus": ["H100"]}, "2 ranks, and torch sees 1 GPUs"),
        ({"why": None, "gpus": ["H100"] * 2}, None),
    ],
)
def test_gpus_as_torch_counts_them(monkeypatch, answer, part):
    monkeypatch.setattr(machine, "ask_torch", lambda: answer)
    found = said("h100-sxm", starting=False)
    assert [part in one.text for one in found] == ([True] if part else [])
    assert all(one.level == "warning" for one in found)


def test_cpu_ranks_need_no_gpu(monkeypatch):
    monkeypatch.setattr(machine, "ask_torch", lambda: pytest.fail("not asked"))
    assert said("cpu") == []


@pytest.mark.parametrize(
    ("limit", "value", "part"),
    [
        (resource.RLIMIT_NOFILE, (24, 24), "open files: 24 are allowed"),
        (resource.RLIMIT_NOFILE, (1024, 1024), "1024 ranks need"),
        (resource.RLIMIT_AS, (GIB, resource.RLIM_INFINITY), "may map 1.0 GiB"),
    ],
)
def test_limits_of_the_process(monkeypatch, limit, value, part):
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda asked: value if asked == limit else unlimited)
    (found,) = check_limits(1024, "error")
    assert part in found.text
    monkeypatch.setattr(machine.resource, "getrlimit", lambda asked: unlimited)
    assert list(check_limits(1024, "error")) == []
