import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatrain.monitor.metrics import StepMetrics


@pytest.fixture
def step_metrics() -> Callable[..., StepMetrics]:
    """Makes plausible metrics of a step; any field can be given."""

    def make(step: int = 10, **fields: Any) -> StepMetrics:
        plausible: dict[str, Any] = {
            "loss": 3.412,
            "grad_norm": 0.41,
            "learning_rate": 5.9e-4,
            "tokens": step * 524_288,
            "step_seconds": 0.27,
            "tokens_per_second": 1.92e6,
            "mfu": 0.413,
            "data_wait_seconds": 0.0005,
            "memory_bytes": int(14.6 * 2**30),
        }
        return StepMetrics(step=step, **(plausible | fields))

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
