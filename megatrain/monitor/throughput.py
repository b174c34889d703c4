"""How fast the loop goes: step time, tokens a second, and model FLOPs utilisation.

MFU here is always: 6 × matmul parameters + 6·L·H·S for causal attention, per token (`ModelSection.flops_per_token`),
over the dense bf16 peak of the hardware profile. Recomputed activations do not count as work.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megatrain.hardware.device import device_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Means over the steps of one interval."""

    step_seconds: float
    data_wait_seconds: float  # of a step
    tokens_per_second: float  # over all ranks
    mfu: float  # 0..1


class Throughput:
    """A stopwatch over optimizer steps. It runs from construction; each `report` starts the next interval.

    On a GPU, work is queued ahead of the host: read the loss (which waits for the device) before `report`.

    Args:
        flops_per_token: forward and backward, by the convention above.
        world_size: ranks that share the work.
        peak_flops_per_rank: dense bf16 peak, FLOP/s.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        flops_per_token: float,
        world_size: int,
        peak_flops_per_rank: float,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops_per_token = flops_per_token
        self._peak_flops = world_size * peak_flops_per_rank
        self._clock = clock
        self._start_interval()

    def _start_interval(self) -> None:
        self._started = self._clock()
        self._paused_seconds = 0.0
        self._steps = 0
        self._tokens = 0
        self._wait_seconds = 0.0

    def step(self, tokens: int, data_wait_seconds: float = 0.0) -> None:
        """Counts one optimizer step of `tokens` tokens over all ranks."""
        self._steps += 1
        self._tokens += tokens
        self._wait_seconds += data_wait_seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes what is not training, an evaluation or a checkpoint, out of the step time. Does not nest.

        Steps that a GPU has still to run are training: waits for them first.
        """
        wait_for_device()
        began = self._clock()
        try:
            yield
        finally:
            self._paused_seconds += self._clock() - began

    def report(self) -> Rates:
        """The rates since the last report.

        Raises:
            ValueError: no step was counted since then.
        """
        if not self._steps:
            raise ValueError("no step since the last report")
        seconds = max(self._clock() - self._started - self._paused_seconds, 1e-9)
        tokens_per_second = self._tokens / seconds
        rates = Rates(
            step_seconds=seconds / self._steps,
            data_wait_seconds=self._wait_seconds / self._steps,
            tokens_per_second=tokens_per_second,
            mfu=tokens_per_second * self._flops_per_token / self._peak_flops,
        )
        self._start_interval()
        return rates


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


def wait_for_device() -> None:
    """Until all is done that was queued on this rank's GPU; a CPU has done it."""
    if device_type() == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory() -> None:
    if device_type() == "cuda":
        torch.cuda.reset_peak_memory_stats()
