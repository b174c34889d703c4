"""A CPU profile's rates: measured here once, remembered, and measured anew where what is remembered is damaged."""

import json
import subprocess

import pytest

from launcher.planning import processor
from launcher.planning.hardware import load_hardware
from launcher.planning.precision import fastest
from megatrain.base.errors import PreflightError

SLOW_BF16 = {"bf16": 75e9, "fp32": 115e9}  # a Xeon without AMX


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Nothing is remembered, in this process or on disk."""
    monkeypatch.setenv(processor.CACHE_VARIABLE, str(tmp_path / "cache"))
    processor.rates.cache_clear()
    yield
    processor.rates.cache_clear()


def remember(content):
    file = processor.remembered_file()
    file.parent.mkdir(exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return file


def test_it_is_measured_by_a_process_of_its_own_and_remembered(monkeypatch):
    measured = processor.rates()
    assert 1e9 < measured.fp32 < 1e13
    assert 1e9 < measured.bf16 < 1e13
    processor.rates.cache_clear()
    monkeypatch.setattr(processor.subprocess, "run", None)  # nothing is measured a second time
    assert processor.rates() == measured


@pytest.mark.parametrize("content", ["", "{", '{"bf16": -1, "fp32": 1}', '{"bf16": 1e9}', '{"bf16": "9", "fp32": 1e9}'])
def test_what_is_damaged_is_measured_anew(monkeypatch, content):
    file = remember(content)
    printed = subprocess.CompletedProcess([], 0, stdout=json.dumps(SLOW_BF16), stderr="")
    monkeypatch.setattr(processor.subprocess, "run", lambda *_, **__: printed)
    assert processor.rates().model_dump() == SLOW_BF16
    assert json.loads(file.read_text(encoding="utf-8")) == SLOW_BF16


def test_a_machine_without_torch_is_told_what_to_do(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ModuleNotFoundError: No module named 'torch'")
    monkeypatch.setattr(processor.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(PreflightError, match=r"cluster.hardware: .*No module named 'torch'.*--calibrate"):
        processor.rates()


def test_a_cpu_that_multiplies_bf16_slower_is_planned_so():
    remember(json.dumps(SLOW_BF16))
    hardware = load_hardware("cpu", 1)
    assert hardware.bf16_tflops < hardware.fp32_tflops == hardware.peak_tflops
    assert fastest(hardware) == "fp32"
