"""The training loop: load, accumulate, step, report, evaluate, save. It knows no file formats and no layouts."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from megatrain.config import Config
from megatrain.data.loading.batch import Batch
from megatrain.data.loading.loader import StepBatches
from megatrain.errors import Stopped
from megatrain.monitor.watchdog import Watchdog
from megatrain.train.checkpointing import Checkpointer
from megatrain.train.engine import Engine
from megatrain.train.evaluation import evaluate
from megatrain.train.report import Reporter
from megatrain.train.schedule import learning_rate
from megatrain.train.signals import StopRequest


class Loader(Protocol):
    """What feeds the loop. `state_dict` is the position of the next batch, the same on every rank; loading it returns
    what the run changes from there on, a line each."""

    wait_seconds: float

    def next(self) -> StepBatches: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> list[str]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run is made of, once built."""

    config: Config
    engine: Engine
    loader: Loader
    validation: Iterable[Batch] | None  # this rank's share, the same at each pass; None: no validation
    checkpointer: Checkpointer
    report: Reporter
    stop: StopRequest
    watchdog: Watchdog

    def close(self) -> None:
        """Ends the threads and files of the parts; the engine and its process group stay."""
        self.loader.close()
        self.report.close()
        self.watchdog.close()


def train(parts: Parts, start_step: int) -> None:
    """Train from `start_step` to the end of the run.

    Raises:
        Stopped: on a signal, after saving.
    """
    config, engine, report = parts.config, parts.engine, parts.report
    total, step = config.total_steps, start_step
    while step < total:
        batches = parts.loader.next()
        targets = max(1, batches.target_tokens)  # the tiniest of batches may have none
        rate = learning_rate(step, total, config.optimizer, config.schedule)
        loss = torch.zeros((), device=engine.device)
        for batch in batches.micro_batches:
            loss += engine.accumulate(batch, targets)
            norm = engine.step(rate)
        step += 1
        parts.watchdog.beat("training", step)
        report.step(
            step,
            loss,
            target_tokens=targets,
            grad_norm=norm,
            learning_rate=rate,
            wait=parts.loader.wait_seconds,
        )
        if step % config.evaluation.every_steps == 0 or step == total:
            run_validation(parts, step)
        reason = parts.stop.agreed(engine.mesh.control_group) if step < total else None
        if step % config.checkpoint.every_steps == 0 or step == total or reason:
            parts.watchdog.beat("saving a checkpoint")
            with report.paused():
                folder = parts.checkpointer.save(step, parts.loader.state_dict())
            if reason:
                report.stopped(step, reason, folder)
                raise Stopped(reason)


def run_validation(parts: Parts, step: int) -> None:
    if parts.validation is None:
        return
    with parts.report.paused():
        loss, tokens = evaluate(parts.engine, parts.watchdog.watched(parts.validation, "evaluation"))
    parts.report.validation(step, loss, tokens)
