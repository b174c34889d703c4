"""What a run reports: each step's numbers are collected, reduced when a report is due, and given to every sink."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from megatrain.base.errors import PreflightError
from megatrain.base.formatting import scientific
from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedRun
from megatrain.monitor.collector import Collector
from megatrain.monitor.memory import memory_bytes, memory_reserved_bytes, reset_peak_memory
from megatrain.monitor.metric import METRICS, Metric
from megatrain.monitor.sinks.base import Sink, open_sinks
from megatrain.monitor.sinks.console import Console
from megatrain.monitor.sinks.jsonl import JsonLines
from megatrain.monitor.throughput import Throughput
from megatrain.parallel.mesh import Mesh
from megatrain.run.directory import RunDir

METRICS.register(
    "loss",
    Metric(
        unit="nats per target, of a language model",
        tag="train/loss",
        format="{:.3f}".format,
        console="loss {value}",
        over_steps="mean",
        over_ranks="sum",
    ),
)
METRICS.register(
    "grad_norm",
    Metric(
        unit="L2 over all parameters, before clipping",
        tag="train/gradient_norm",
        format="{:.2f}".format,
        console="|g| {value}",
    ),
)
METRICS.register(
    "global_batch_size",
    Metric(
        unit="sequences of the step; of a run that warms its batch size up",
        tag="train/global_batch_size",
        format="{:,.0f}".format,
        console="batch {value}",
    ),
)
METRICS.register("learning_rate", Metric(unit="1", tag="train/learning_rate", format=scientific, console="lr {value}"))


class Reporter:
    """Counts every step; speaks at those that are due. All ranks call it; rank 0 writes.

    Args:
        start: where this start of the run resumes.
    """

    def __init__(self, config: ResolvedRun, run: RunDir, mesh: Mesh, console: Console, *, start: Progress) -> None:
        self._console = console
        self._interval = config.monitor.log_interval_steps
        self._total = start.step + config.steps_left(start)
        self._sequence_length = config.sequence_length
        self._samples = start.samples  # before the step that is counted next
        self._says_batch_size = bool(config.training.batch_size_warmup)
        self._throughput = Throughput(
            config.model.flops_per_token(config.sequence_length),
            mesh.world_size,
            config.cluster.peak_tflops * 1e12,
        )
        self._collector = Collector(mesh.dp_cp_group)
        self._began = time.monotonic()
        self._counted = 0
        self._sinks: list[Sink] = []
        if mesh.is_main:
            self._sinks = [JsonLines(run, resume_step=start.step), *open_sinks(run, config, resume_step=start.step)]

    def due(self, step: int) -> bool:
        """Whether `step` is reported, and so waits for the device."""
        return step % self._interval == 0 or step == self._total

    def step(self, progress: Progress, values: Mapping[str, float | Tensor], *, wait: float) -> None:
        """Count a finished step; report those since the last report when one is due.

        Args:
            progress: after the step.
            values: of registered metrics; tensors [] are read at steps that are due only.
            wait: seconds that the loader kept the step waiting.
        """
        size, self._samples = progress.samples - self._samples, progress.samples
        self._throughput.step(size * self._sequence_length, wait)
        self._collector.add(values)
        memory, reserved = memory_bytes(), memory_reserved_bytes()
        if self._counted == 0:
            reset_peak_memory()  # what building, compiling and tuning took is not what training takes
        self._counted += 1
        if not self.due(progress.step):
            return
        found = self._collector.collect()  # waits for the device
        if self._says_batch_size:
            found["global_batch_size"] = size
        found["tokens"] = progress.samples * self._sequence_length
        found |= self._throughput.report() | {"memory_bytes": memory}
        if reserved is not None:
            found["memory_reserved_bytes"] = reserved
        found["memory_bytes"] = memory
        if reserved is not None:
            found["memory_reserved_bytes"] = reserved
        self._write(progress.step, found)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self._write(step, values)

    def line(self, text: str) -> None:
        """For whoever watches; no number of it is kept."""
        self._console.line(text)

    def saved(self, step: int, folder: Path, seconds: float, size_bytes: int) -> None:
        self._console.checkpoint(step, folder, seconds=seconds, size_bytes=size_bytes)

    def paused(self) -> AbstractContextManager[None]:
        """Around what is not training; first waits for the steps that a GPU has still to run."""
        return self._throughput.paused()

    def nothing_to_do(self, step: int, checkpoint: Path | None) -> None:
        self._console.nothing_to_do(step, checkpoint)

    def ended(self, step: int, checkpoint: Path) -> None:
        self._console.end(step, seconds=time.monotonic() - self._began, checkpoint=checkpoint)

    def stopped(self, step: int, reason: str, checkpoint: Path) -> None:
        self._console.stopped(step, reason, checkpoint)

    def close(self) -> None:
        self._console.close()
        closers: list[Callable[[], None]] = [sink.close for sink in self._sinks]
        for close in closers:
            try:
                close()
            except PreflightError as error:  # must not hide what ended the run
                self._console.warning(str(error))

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._console.write(step, values)
        for sink in self._sinks:
            sink.write(step, values)
