"""One voice for what a run says: console, metrics.jsonl and TensorBoard get the same numbers."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.base.errors import PreflightError
from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedRun
from megatrain.monitor.console import Console
from megatrain.monitor.metrics import MetricsLog, StepMetrics
from megatrain.monitor.tensorboard import TensorBoard
from megatrain.monitor.throughput import Throughput, memory_bytes, memory_reserved_bytes, reset_peak_memory
from megatrain.parallel.mesh import Mesh
from megatrain.run.directory import RunDir


class Reporter:
    """Counts every step; speaks at those that are due. All ranks call it; rank 0 writes.

    Args:
        start: where this start of the run goes on from.
    """

    def __init__(self, config: ResolvedRun, run: RunDir, mesh: Mesh, console: Console, *, start: Progress) -> None:
        self._mesh = mesh
        self._console = console
        self._every = config.monitor.log_interval_steps
        self._total = start.step + config.steps_left(start)
        self._sequence_length = config.sequence_length
        self._tokens_per_step = config.tokens_per_step
        self._throughput = Throughput(
            config.model.flops_per_token(config.sequence_length),
            mesh.world_size,
            config.cluster.peak_tflops * 1e12,
        )
        self._began = time.monotonic()
        self._counted = 0
        self._losses: list[Tensor] = []
        self._metrics = MetricsLog(run, resume_step=start.step) if mesh.is_main else None
        wanted = mesh.is_main and config.monitor.tensorboard
        self._board = TensorBoard(run, resume_step=start.step, world_size=mesh.world_size) if wanted else None

    def due(self, step: int) -> bool:
        """Whether `step` speaks, and so waits for the device."""
        return step % self._every == 0 or step == self._total

    def step(
        self,
        progress: Progress,
        loss_sum: Tensor,
        *,
        target_tokens: int,
        grad_norm: float | Tensor,
        learning_rate: float,
        wait: float,
    ) -> None:
        """Count a finished step; report the mean over the steps since the last report when one is due.

        Args:
            progress: after the step.
            loss_sum: this rank's summed loss.
            grad_norm: what `Engine.step` returned; read at steps that are due only.
            wait: seconds that the loader kept the step waiting.
        """
        self._throughput.step(self._tokens_per_step, wait)
        self._losses.append(loss_sum / target_tokens)
        memory, reserved = memory_bytes(), memory_reserved_bytes()
        if self._counted == 0:
            reset_peak_memory()  # what building, compiling and tuning took is not what training takes
        self._counted += 1
        if not self.due(progress.step):
            return
        loss = torch.stack(self._losses).mean()
        dist.all_reduce(loss, group=self._mesh.dp_cp_group)
        self._losses.clear()
        value = loss.item()  # waits for the device
        rates = self._throughput.report()
        metrics = StepMetrics(
            step=progress.step,
            loss=value,
            grad_norm=float(grad_norm),
            learning_rate=learning_rate,
            tokens=progress.samples * self._sequence_length,
            step_seconds=rates.step_seconds,
            tokens_per_second=rates.tokens_per_second,
            mfu=rates.mfu,
            data_wait_seconds=rates.data_wait_seconds,
            memory_bytes=memory,
            memory_reserved_bytes=reserved,
        )
        self._console.step(metrics)
        for sink in (self._metrics, self._board):
            if sink is not None:
                sink.write(metrics)

    def line(self, text: str) -> None:
        """For whoever watches; no number of it is kept."""
        self._console.line(text)

    def validation(self, step: int, loss: float, tokens: int) -> None:
        self._console.evaluation(step, loss, tokens)
        for sink in (self._metrics, self._board):
            if sink is not None:
                sink.write_validation(step, loss)

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
        closers: list[Callable[[], None]] = [sink.close for sink in (self._metrics, self._board) if sink is not None]
        for close in closers:
            try:
                close()
            except PreflightError as error:  # must not hide what ended the run
                self._console.warning(str(error))
