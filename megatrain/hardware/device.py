"""Which kind of device the ranks of a run work on. The launcher decides it; whoever asks, asks here."""

import os
import warnings
from pathlib import Path
from typing import Literal

import torch

from megatrain.base.errors import ConfigError

VARIABLE = "DS_ACCELERATOR"  # DeepSpeed reads it as well, when it is imported
_DRIVER = Path("/proc/driver/nvidia/version")


def device_type() -> Literal["cuda", "cpu"]:
    """As the launcher decided (DS_ACCELERATOR); where it did not, cuda where torch sees a GPU (ROCm's too).

    Raises:
        ConfigError: DS_ACCELERATOR names another device.
    """
    planned = os.environ.get(VARIABLE)
    if planned is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if planned == "cuda":
        return "cuda"
    if planned == "cpu":
        return "cpu"
    raise ConfigError(f"environment: {VARIABLE}: {planned!r}: must be cuda or cpu")


def why_no_cuda() -> str | None:
    """Why this process can use no GPU: torch's build, the driver, and what CUDA says; None where it can."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    build = built if torch.version.cuda or torch.version.hip else "no GPU support"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    parts = [f"torch {torch.__version__} (built with {build}) sees no GPU", f"driver: {_driver()}"]
    parts += [f"CUDA_VISIBLE_DEVICES={visible!r}"] if visible is not None else []
    parts += [" ".join(str(warning.message).split()) for warning in said[:1]]
    return "; ".join(parts)


def _driver() -> str:
    try:
        return " ".join(_DRIVER.read_text(encoding="utf-8", errors="replace").splitlines()[0].split())
    except (OSError, IndexError):
        return "none found"
