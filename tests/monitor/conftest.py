import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatrain.tasks import causal_lm  # noqa: F401 - registers what is reported, as does:
from megatrain.train import report  # noqa: F401


@pytest.fixture
def step_metrics() -> Callable[..., dict[str, float]]:
    """Plausible values of a step; any can be given."""

    def make(step: int = 10, **given: float) -> dict[str, float]:
        plausible: dict[str, float] = {
            "loss": 3.412,
            "grad_norm": 0.41,
            "learning_rate": 5.9e-4,
            "tokens": step * 524_288,
            "step_seconds": 0.27,
            "tokens_per_second": 1.92e6,
            "tokens_per_second_per_gpu": 3.0e4,
            "mfu": 0.413,
            "data_wait_seconds": 0.0005,
            "data_wait_fraction": 0.002,
            "memory_bytes": int(14.6 * 2**30),
        }
        return plausible | given

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
