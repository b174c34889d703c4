"""How fast the loop goes: step time, tokens per second, and model FLOPs utilisation.

MFU here is always: 6 × matmul parameters + 12·H·the positions seen, 6·L·H·S where all are causal, per token
(`ModelSection.flops_per_token`), over the dense bf16 peak of the hardware profile. Recomputed activations do not count
as work.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megatrain.base.formatting import percent, quantity
from megatrain.hardware.device import device_type
from megatrain.monitor.metric import METRICS, Metric

METRICS.register(
    "tokens",
    Metric(unit="tokens since the start of the run, over all ranks", tag=None, format=quantity),
)
METRICS.register("step_seconds", Metric(unit="s", tag="throughput/step_seconds"))
METRICS.register(
    "tokens_per_second",
    Metric(
        unit="tokens/s, over all ranks", tag="throughput/tokens_per_second", format=quantity, console="{value} tok/s"
    ),
)
METRICS.register(
    "tokens_per_second_per_gpu",
    Metric(
        unit="tokens/s per rank",
        tag="throughput/tokens_per_second_per_gpu",
        format=quantity,
        console="{value}/{device}",
    ),
)
METRICS.register("mfu", Metric(unit="0 to 1", tag="throughput/mfu", format=percent, console="MFU {value}"))
METRICS.register("data_wait_seconds", Metric(unit="s per step, waiting for the loader", tag=None))
METRICS.register(
    "data_wait_fraction",
    Metric(unit="of a step", tag="throughput/data_wait_fraction", format=percent, console="data wait {value}"),
)


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
        self._world_size = world_size
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

    def report(self) -> dict[str, float]:
        """Means over the steps since the last report, by the names of metrics.

        Raises:
            ValueError: no step was counted since then.
        """
        if not self._steps:
            raise ValueError("no step since the last report")
        seconds = max(self._clock() - self._started - self._paused_seconds, 1e-9)
        tokens_per_second = self._tokens / seconds
        step_seconds, wait_seconds = seconds / self._steps, self._wait_seconds / self._steps
        rates = {
            "step_seconds": step_seconds,
            "tokens_per_second": tokens_per_second,
            "tokens_per_second_per_gpu": tokens_per_second / self._world_size,
            "mfu": tokens_per_second * self._flops_per_token / self._peak_flops,
            "data_wait_seconds": wait_seconds,
            "data_wait_fraction": wait_seconds / step_seconds,
        }
        self._start_interval()
        return rates


def wait_for_device() -> None:
    """Until all is done that was queued on this rank's GPU; a CPU has done it."""
    if device_type() == "cuda":
        torch.cuda.synchronize()
