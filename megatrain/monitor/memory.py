"""Peak memory of one rank."""

import resource
import sys

import torch

from megatrain.base.formatting import gib
from megatrain.hardware.device import device_type
from megatrain.monitor.metric import METRICS, Metric

METRICS.register(
    "memory_bytes",
    Metric(
        unit="bytes, peak of rank 0 after its first step",
        tag="memory/gib",
        tag_scale=2**-30,
        format=gib,
        console="{value}",
    ),
)
METRICS.register(
    "memory_reserved_bytes",
    Metric(unit="bytes, likewise, with what CUDA's allocator keeps for later", tag=None, format=gib),
)


def memory_bytes() -> int:
    """Peak memory of this rank: what CUDA allocated for tensors, or on a CPU the resident set of the process.

    On a GPU since the last `reset_peak_memory`.
    """
    if device_type() == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def memory_reserved_bytes() -> int | None:
    """Peak of what CUDA's allocator took from the GPU, fragments included; None on a CPU."""
    return torch.cuda.max_memory_reserved() if device_type() == "cuda" else None


def reset_peak_memory() -> None:
    if device_type() == "cuda":
        torch.cuda.reset_peak_memory_stats()
