"""A hardware profile from measurements on this machine: curves with two numbers each, fitted to what
`megatrain.hardware.benchmark` measured in a process of its own.

    matmul       rate = R / (1 + s/m)(1 + s/k)(1 + s/n)          R reachable, s the size that alone halves it
    all-reduce   seconds = 2(n-1)·latency + 2(n-1)/n·bytes/bandwidth
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.installation import python_path
from launcher.planning.hardware import GIB, Link, load_hardware
from megatrain.base.errors import ConfigError, PreflightError
from megatrain.base.files import write_atomically
from megatrain.base.terminal import copyable

_TIMEOUT = 900
_EFFICIENCY = {"cuda": 0.89, "rocm": 0.89, "cpu": 0.5}  # of a training loop; no small measurement shows it
_ONE_RANK = Link(bandwidth=1.0, latency=100.0)  # nothing was measured


def calibrate(out: Path, ranks: int | None) -> str:
    """Measure, fit, and write the profile `out`; returns what to tell.

    Raises:
        ConfigError: `out` is no YAML file's name, or already exists.
        PreflightError: the measurement failed, or `out` cannot be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--calibrate: {out}: must end in .yaml: it is the hardware profile to write.")
    if out.exists():
        raise ConfigError(f"--calibrate: {out}: already exists. Give another name, or remove it.")
    measured = _measure(ranks)
    text = profile(measured)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    except OSError as error:
        raise PreflightError(f"--calibrate: {out}: cannot be written: {error.strerror}") from None
    load_hardware(str(out.absolute()), measured["ranks"])  # it is one that the planner takes
    return f"{text}\nwritten: {out}. Use it with cluster.hardware={copyable(out)}"


def profile(measured: dict[str, Any]) -> str:
    """The YAML of a profile, from what `megatrain.hardware.benchmark` prints."""
    device = measured["device"]
    bf16, half = fit_matmul(measured["bf16"])
    fp32, _ = fit_matmul(measured["fp32"])
    link = fit_link(measured["all_reduce"], measured["ranks"])
    lines = [f"# {measured['name']}: measured by `megatrain plan --calibrate` on this machine.", f"device: {device}"]
    if device == "cpu":
        lines += [
            f"cores_per_node: {measured['cores']}",
            f"memory_gib: {measured['memory_bytes'] / GIB:.1f}",
            f"bf16_tflops_per_core: {bf16 / 1e12:.4f}",
            f"fp32_tflops_per_core: {fp32 / 1e12:.4f}",
        ]
    else:
        peak = _peak(measured["name"]) or bf16 / 1e12
        lines += [
            f"memory_gib: {measured['memory_bytes'] / GIB:.1f}",
            f"bf16_tflops: {max(peak, bf16 / 1e12):.1f}  # the divisor of MFU: a datasheet's, where the part is known",
            f"bf16_reachable_tflops: {bf16 / 1e12:.1f}",
            f"fp32_tflops: {fp32 / 1e12:.1f}",
            f"gpus_per_node: {measured['ranks']}",
        ]
    lines += [
        f"training_efficiency: {_EFFICIENCY[device]}  # not measured",
        f"matmul_half_size: {half:.0f}",
        f"memory_bandwidth: {measured['copy_bytes_a_second'] / 1e9:.1f}",
        f"link: {{bandwidth: {link.bandwidth:.3f}, latency: {link.latency:.1f}}}"
        + ("" if measured["all_reduce"] else "  # not measured: one rank"),
        f"network: {{bandwidth: {min(link.bandwidth, 1.0):.3f}, latency: {link.latency:.1f}}}"
        "  # not measured: set it to a rank's share of the network",
    ]
    return "\n".join(lines) + "\n"


def fit_matmul(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """R in FLOP/s and s, from [size, FLOP/s] of square products: least squares of log rate."""

    def fit(half: float) -> tuple[float, float]:
        logs = [math.log(rate) + 3 * math.log1p(half / size) for size, rate in points]
        mean = sum(logs) / len(logs)
        return sum((log - mean) ** 2 for log in logs), mean

    half = min((1.02**step for step in range(-100, 400)), key=lambda half: fit(half)[0])
    reachable = max(math.exp(fit(half)[1]), max(rate for _, rate in points))
    return reachable, half


def fit_link(points: Sequence[Sequence[float]], ranks: int) -> Link:
    """From [bytes, seconds] of all-reduces: latency by the smallest message, bandwidth by the largest."""
    if not points:
        return _ONE_RANK
    (_, first), (size, last) = points[0], points[-1]
    latency = max(first / (2 * (ranks - 1)), 1e-7)
    moving = max(last - first, 1e-9)
    return Link(bandwidth=2 * (ranks - 1) / ranks * size / moving / 1e9, latency=latency * 1e6)


def _peak(name: str) -> float | None:
    """The datasheet's TFLOP/s of a known part."""
    for part, profile_name in (("H100", "h100-sxm"), ("H200", "h200"), ("B200", "b200"), ("A100", "a100-80gb")):
        if part in name:
            return load_hardware(profile_name, 1).peak_tflops
    return None


def _measure(ranks: int | None) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "megatrain.hardware.benchmark", *([str(ranks)] if ranks else [])]
    try:
        environment = {**os.environ, "PYTHONPATH": python_path()}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise PreflightError(f"--calibrate: the measurement took more than {_TIMEOUT} s.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PreflightError(f"--calibrate: the measurement failed: {last}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
