"""The training loop: load, accumulate, step, report, evaluate, save. It knows no file formats and no layouts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatrain.base.errors import Stopped
from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedRun
from megatrain.config.validation_sets import metric_of_set
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.monitor.watchdog import Watchdog
from megatrain.perturbation.noise import Place
from megatrain.run.directory import RunDir
from megatrain.schedule.learning_rate import learning_rate
from megatrain.tasks.base import Loader, LossSums, Task
from megatrain.train.checkpointing import Checkpointer, Position
from megatrain.train.early_stopping import EarlyStopping
from megatrain.train.engine import Engine
from megatrain.train.evaluation import evaluate
from megatrain.train.finite import FiniteGuard
from megatrain.train.generating import Responder
from megatrain.train.report import Reporter
from megatrain.train.signals import StopRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingComponents:
    """What a run is made of, once built."""

    config: ResolvedRun
    run: RunDir
    task: Task[Any]
    engine: Engine
    loader: Loader[Any]
    guard: FiniteGuard
    validation: Mapping[str, Iterable[TensorBatch]]  # by set: this rank's share, the same at each pass
    checkpointer: Checkpointer
    report: Reporter
    responders: Mapping[str, Responder]  # by set; empty: no responses are generated
    stop: StopRequest
    watchdog: Watchdog
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)

    def close(self) -> None:
        """Ends the threads and files of the parts; the engine and its process group stay."""
        self.loader.close()
        self.report.close()
        self.watchdog.close()

    def say_best(self) -> None:
        for line in self.early_stopping.lines(self.run):
            self.report.line(line)


def train(parts: TrainingComponents, start: Position) -> None:
    """Train from `start` to the end of the run.

    Raises:
        Stopped: on a signal, after saving.
        NonFiniteError: before an update that is not finite is kept, or a checkpoint that is not is written.
    """
    config, engine, report, guard, early = parts.config, parts.engine, parts.report, parts.guard, parts.early_stopping
    progress, sizes = start.progress, config.training.batch_sizes
    total = progress.step + config.steps_left(progress)
    if progress.step == total:
        report.nothing_to_do(total, start.checkpoint)
    if early.is_over and progress.step < total:
        parts.say_best()
    while progress.step < total and not early.is_over:
        batches = parts.loader.next()
        parts.task.before_step()
        targets = batches.targets or 1  # the tiniest of batches may have none
        rate = learning_rate(progress, config)
        sums: LossSums | None = None
        engine.begin_step(len(batches.micro_batches))
        for number, batch in enumerate(batches.micro_batches):
            sums = _added(sums, engine.forward_backward(batch, targets, Place(progress.step, number)))
            norm = engine.step(rate)
        assert sums is not None, "a step has a micro-batch"
        progress = progress.after_step(sizes.at(progress.samples))
        step = progress.step
        guard.step(progress, sums.loss, norm)
        parts.watchdog.beat("training", step)
        if report.due(step):
            guard.demand(progress)
            parts.checkpointer.retain()
        shares = {name: value / targets for name, value in {"loss": sums.loss, **sums.extras}.items()}
        report.step(progress, shares | {"grad_norm": norm, "learning_rate": rate}, wait=parts.loader.wait_seconds)
        is_best = False
        if step % config.evaluation.interval_steps == 0 or step == total:
            is_best = early.look(step, run_validation(parts, progress))
        is_end = step == total or early.is_over
        reason = None if is_end else parts.stop.agreed(step)
        if step % config.checkpoint.interval_steps == 0 or is_end or is_best or reason:
            folder = save(parts, progress)
            if reason:
                report.stopped(step, reason, folder)
                raise Stopped(reason)
            if is_end:
                parts.checkpointer.retain()
                report.ended(step, folder)
                parts.say_best()


def run_validation(parts: TrainingComponents, progress: Progress) -> dict[str, float]:
    """What was measured; nothing where there is nothing to evaluate on."""
    found: dict[str, float] = {}
    for name, batches in parts.validation.items():
        parts.guard.demand(progress)
        with parts.report.paused():
            sums, own_sums = evaluate(parts.engine, parts.watchdog.watched(batches, "evaluation"))
            metrics = parts.task.evaluation_metrics(sums) if sums else {}
        parts.guard.evaluation(progress, metrics, own_sums)
        if name in parts.responders:
            with parts.report.paused():
                watched = partial(parts.watchdog.beat_for_all, "generating responses")
                metrics |= parts.responders[name].evaluate(parts.engine, progress.step, watched)
        metrics = {metric_of_set(name, metric): value for metric, value in metrics.items()}
        parts.report.evaluation(progress.step, metrics)
        found |= metrics
    return found


def save(parts: TrainingComponents, progress: Progress) -> Path:
    """The checkpoint's folder. What is not finite is not saved: it could take the place of one that is."""
    parts.watchdog.beat("saving a checkpoint")
    parts.guard.demand(progress)
    parts.checkpointer.retain()
    parts.guard.saving(progress, parts.engine.not_finite())
    state = parts.loader.state_dict()
    assert state["position"] == progress.samples, "the loader has given what was counted"
    with parts.report.paused():
        return parts.checkpointer.save(progress.step, state, progress.batches, parts.early_stopping.best)


def _added(sums: LossSums | None, more: LossSums) -> LossSums:
    if sums is None:
        return more
    extras: dict[str, Tensor] = {name: value + more.extras[name] for name, value in sums.extras.items()}
    return LossSums(sums.loss + more.loss, extras)
