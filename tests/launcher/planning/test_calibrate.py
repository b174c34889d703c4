"""Curves from measurements: fits give back what made the points; the file is one that the planner takes."""

import pytest

from launcher.planning import calibrate
from launcher.planning.hardware import load_hardware
from megatrain.base.errors import ConfigError

MEASURED = {
    "device": "cpu",
    "name": "CPU",
    "cores": 4,
    "memory_bytes": 16 * 2**30,
    "bf16": [[size, 4e11 / (1 + 60 / size) ** 3] for size in (128, 256, 512, 1024, 2048)],
    "fp32": [[size, 1e11 / (1 + 60 / size) ** 3] for size in (128, 256, 512, 1024, 2048)],
    "copy_bytes_a_second": 3e10,
    "ranks": 4,
    "all_reduce": [[size, 2 * 3 * 50e-6 + 2 * 3 / 4 * size / 2e9] for size in (4096, 2**20, 2**25)],
}


def test_a_matmul_curve_is_found_again():
    reachable, half = calibrate.fit_matmul(MEASURED["bf16"])
    assert reachable == pytest.approx(4e11, rel=0.02)
    assert half == pytest.approx(60, rel=0.03)


def test_a_link_is_found_again():
    link = calibrate.fit_link(MEASURED["all_reduce"], 4)
    assert link.latency == pytest.approx(50, rel=0.03)
    assert link.bandwidth == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_profile_is_one_that_the_planner_takes(tmp_path, device):
    measured = MEASURED | {"device": device, "name": "NVIDIA H100 80GB HBM3" if device == "cuda" else "CPU"}
    path = tmp_path / "own.yaml"
    path.write_text(calibrate.profile(measured), encoding="utf-8")
    hardware = load_hardware(str(path), 4)
    assert hardware.memory_bandwidth == pytest.approx(30 if device == "cuda" else 30 / 4)
    assert hardware.matmul_half_size == pytest.approx(60, abs=2)
    assert hardware.peak_tflops == pytest.approx(989.4 if device == "cuda" else 0.4, rel=0.02)


def test_one_rank_has_no_link_to_measure():
    text = calibrate.profile(MEASURED | {"ranks": 1, "all_reduce": []})
    assert "not measured: one rank" in text


def test_a_file_is_never_overwritten(tmp_path):
    (tmp_path / "own.yaml").write_text("kept", encoding="utf-8")
    with pytest.raises(ConfigError, match="already exists"):
        calibrate.calibrate(tmp_path / "own.yaml", None)
    with pytest.raises(ConfigError, match=r"must end in \.yaml"):
        calibrate.calibrate(tmp_path / "own.txt", None)
