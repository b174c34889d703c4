"""What a run prints: a block at the start, a line per report, a page at the end.

Rank 0 alone prints. On a terminal a bar stays below the lines; elsewhere each line is flushed, for whoever follows the
log of a job.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from megatrain.base.formatting import duration, gib, quantity
from megatrain.base.progress import Progress
from megatrain.base.terminal import copyable, is_terminal, printable
from megatrain.config import PretrainConfig
from megatrain.config.resolved import ResolvedRun
from megatrain.config.step_sizes import steps_in_words
from megatrain.monitor.metric import METRICS
from megatrain.run.directory import RunDir
from megatrain.topology import Topology
from megatrain.version import __version__

_WAIT_WORTH_A_WARNING = 0.10  # of a step


class Console:
    """What a run prints.

    Args:
        config: resolved; no "auto" is left in it.
        rank: ranks other than 0 print nothing.
        stream: default: standard output.
    """

    def __init__(
        self, config: ResolvedRun, run: RunDir, *, rank: int, world_size: int, stream: TextIO | None = None
    ) -> None:
        self._config = config
        self._run = run
        self._world_size = world_size
        self._unit = "rank" if config.cluster.hardware == "cpu" else "GPU"
        self._stream: TextIO | None = (stream or sys.stdout) if rank == 0 else None
        self._total_steps = config.total_steps
        self._bar = _Bar(self._stream, self._total_steps) if self._stream and is_terminal(self._stream) else None
        self._waiting = False
        self._last: dict[str, float] = {}

    def header(self, plan: Mapping[str, Any] | None = None, *, goes_on: bool = False) -> None:
        """Says what is about to run.

        Args:
            plan: the content of RUN/plan.json.
            goes_on: the run has checkpoints: how many steps are left, `resumed` says.
        """
        for line in _header(self._config, self._world_size, plan or {}, self._unit, goes_on=goes_on):
            self.line(line)

    def resumed(
        self, progress: Progress, checkpoint: Path, *, saved_ranks: int, saved_layout: str, layout: str
    ) -> None:
        """`saved_layout` and `layout` in words, such as "ZeRO-1, tensor 1, data 4"; told where they differ."""
        left = self._config.steps_left(progress)
        self._total_steps = progress.step + left
        if self._bar:
            self._bar.ends_at(self._total_steps)
        then, now = f"saved on {saved_ranks} ranks", f"{self._world_size}"
        if saved_layout != layout:
            then, now = f"{then} as {saved_layout}", f"{now} as {layout}"
        changed = then if (saved_ranks, saved_layout) == (self._world_size, layout) else f"{then}; now {now}"
        where = self._within_run(checkpoint)
        done = quantity(progress.samples * self._config.sequence_length)
        self.line(
            f"resume: step {progress.step:,} from {where} ({changed}) · data position {progress.samples:,} samples, "
            f"{done} tokens · {steps_in_words(self._config, progress)} to go"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A report of training, which has a loss, or of an evaluation."""
        self._last |= values
        texts = [METRICS.get(name).text(value, self._unit) for name, value in values.items()]
        if of_set := next((METRICS.split(name)[0] for name in values), ""):
            texts[:0] = [f"{of_set}:"]
        seconds = values.get("step_seconds")
        if seconds is not None:
            texts.append(f"eta {duration(self._seconds_left(step, values))}")
        self.line("  ".join((self._at(step), *filter(None, texts))))
        if "data_wait_fraction" in values:
            self._warn_of_data_wait(values["data_wait_fraction"])
        if self._bar and "loss" in values:
            with self._while_read():
                self._bar.move_to(step, f"loss {values['loss']:.3f}")

    def _seconds_left(self, step: int, values: Mapping[str, float]) -> float:
        if not self._config.training.batch_size_warmup:
            return (self._total_steps - step) * values["step_seconds"]
        length = self._config.sequence_length
        samples = self._config.samples_left(Progress(step, round(values["tokens"]) // length))
        return samples * length / values["tokens_per_second"]

    def checkpoint(self, step: int, folder: Path, *, seconds: float, size_bytes: int) -> None:
        self.line(f"{self._at(step)}  saved {self._within_run(folder)} ({gib(size_bytes)} in {seconds:.1f}s)")

    def warning(self, text: str) -> None:
        self.line(f"warning: {text}")

    def stopped(self, step: int, reason: str, checkpoint: Path) -> None:
        """The last line of a run that a signal ended, such as reason="SIGTERM"."""
        where = self._within_run(checkpoint)
        self.line(f"stopped: {self._at(step)} on {reason}, saved {where}; run the same command again to resume")

    def nothing_to_do(self, step: int, checkpoint: Path | None) -> None:
        """The last line of a start that finds the run at its end, or past it."""
        training, field = self._config.training, "tokens" if self._config.training.steps is None else "steps"
        wanted = f"training.{field} is {getattr(training, field):,}"
        saved = f"; its checkpoint is {checkpoint}" if checkpoint else ""
        self.line(f"nothing to do: the run is at step {step:,}, and {wanted}{saved}")

    def end(self, step: int, *, seconds: float, checkpoint: Path | None) -> None:
        """The page at the end of a complete run; `seconds` since its start or its last resume."""
        for line in self._end_page(step, seconds, checkpoint):
            self.line(line)

    def line(self, text: str) -> None:
        """Prints one line. A reader that has gone, such as a closed terminal, silences the console for good.

        The run goes on without it: the same numbers are in metrics.jsonl.
        """
        if self._stream is None:
            return
        text = printable(text)
        with self._while_read():
            if self._bar:
                self._bar.print_above(text)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar:
            with self._while_read():
                self._bar.close()
            self._bar = None

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._stream = self._bar = None

    def _at(self, step: int) -> str:
        return f"step {step:,}/{self._total_steps:,}"

    def _within_run(self, folder: Path) -> str:
        inside = folder.is_relative_to(self._run.path)
        return str(folder.relative_to(self._run.path)) if inside else str(folder)

    def _warn_of_data_wait(self, fraction: float) -> None:
        """Warns when waiting begins to matter, not at every report while it does."""
        if fraction > _WAIT_WORTH_A_WARNING and not self._waiting:
            if isinstance(self._config, PretrainConfig):
                fix = f"raise data.prefetch (now {self._config.data.prefetch})"
            else:
                fix = "the examples are read too slowly"
            self.warning(f"data wait is {fraction:.0%} of a step; {fix}")
        self._waiting = fraction > _WAIT_WORTH_A_WARNING

    def _end_page(self, step: int, seconds: float, checkpoint: Path | None) -> list[str]:
        lines = [f"done: {self._at(step)} in {duration(seconds)}"]
        if last := self._last:
            losses = [name for name in last if METRICS.split(name)[1] == "validation_loss"]
            of_sets = [f"{last[name]:.4g} {METRICS.split(name)[0]} validation" for name in losses]
            validation = "".join(f", {' '.join(text.split())}" for text in of_sets)
            rates = ("tokens_per_second", "tokens_per_second_per_gpu", "mfu")
            lines += [
                f"  loss        {last['loss']:.4g} training{validation}",
                f"  tokens      {quantity(last['tokens'])}"
                + ("" if isinstance(self._config, PretrainConfig) else ", padding counted"),
                f"  throughput  {'  '.join(METRICS.get(name).text(last[name], self._unit) or '' for name in rates)} "
                "(MFU: 6N + attention, over the dense bf16 peak)",
                f"  memory      {gib(last['memory_bytes'])} per {self._unit}",
            ]
        if checkpoint:
            lines.append(f"  checkpoint  {checkpoint}")
        run = copyable(self._run.path)
        model = self._config.model
        if model.is_causal and model.num_labels is None:
            tried = f'megatrain generate {run} "Once upon a time"'
        else:  # neither an encoder nor a classifier continues a text
            tried = f"megatrain export {run} {copyable(Path('exported', self._run.path.name))}"
        return [*lines, "next:", f"  {tried}", f"  megatrain tensorboard {run}"]


class _Bar:
    """A progress bar below the lines of a terminal."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
        console = RichConsole(file=stream, highlight=False, soft_wrap=True)
        self._progress = ProgressBar(
            *columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=2
        )
        self._task = self._progress.add_task("", total=total_steps)
        self._progress.start()

    def print_above(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def ends_at(self, total_steps: int) -> None:
        self._progress.update(self._task, total=total_steps)

    def move_to(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        self._progress.stop()


def _header(config: ResolvedRun, world_size: int, plan: Mapping[str, Any], unit: str, *, goes_on: bool) -> list[str]:
    training, parallel, cluster = config.training, config.parallel, config.cluster
    tensor, context = parallel.tensor_parallel, parallel.context_parallel
    topology = Topology(world_size=world_size, tensor_parallel=tensor, context_parallel=context)
    accumulation = training.global_batch_size // (training.micro_batch_size * topology.data_parallel)
    as_configured = cluster.nodes > 1 and cluster.nodes * cluster.gpus_per_node == world_size
    here = "1 rank of" if world_size == 1 else f"{world_size} ranks of"
    ranks = f"{cluster.nodes} nodes × {cluster.gpus_per_node}" if as_configured else here
    kind = parallel.activation_checkpointing
    recompute = {"none": "", "offload": "full recompute"}.get(kind, f"{kind} recompute")
    if recompute and isinstance(parallel.recompute_blocks, int):
        recompute += f" of {parallel.recompute_blocks} blocks"
    offloaded = (kind == "offload", "activations"), (parallel.offload_optimizer == "cpu", "optimizer")
    there = " and ".join(name for is_there, name in offloaded if is_there)
    offload = f"{there} on the host" if there else ""
    features = ("compile" if parallel.compile else "", recompute, offload)
    near = parallel.zero_hpz_partition_size
    layout = f"ZeRO-{parallel.zero_stage}{f' (hpZ {near})' if isinstance(near, int) and near > 1 else ''}, {topology}"
    batch = f"micro-batch {training.micro_batch_size} × {accumulation}"
    first = (
        f"megatrain {__version__}", f"run {config.run.name}", f"{ranks} {cluster.hardware}",
        layout, batch, ", ".join(filter(None, features)), training.precision,
    )  # fmt: skip
    second = (
        f"{quantity(config.model.parameters)} parameters{_trained(config)}",
        _length_left(config) if goes_on else _length(config),
        *_predictions(plan, None if goes_on else config, unit),
    )
    return [" · ".join(filter(None, first)), " · ".join(second)]


def _trained(config: ResolvedRun) -> str:
    return f", {quantity(config.model.trained_parameters)} of them trained" if config.model.freezes else ""


def _length(config: ResolvedRun) -> str:
    tokens = config.samples_left(Progress()) * config.sequence_length
    unit = "tokens" if isinstance(config, PretrainConfig) else "tokens (padding counted)"
    return f"{quantity(tokens)} {unit} = {steps_in_words(config)}"


def _length_left(config: ResolvedRun) -> str:
    """Of a run whose steps so far may have had another size."""
    training = config.training
    length = f"{quantity(training.tokens)} tokens" if training.tokens is not None else f"{training.steps:,} steps"
    upto = "up to " if training.batch_size_warmup else ""
    return f"{length}, from here on in steps of {upto}{config.tokens_per_step:,} tokens"


def _predictions(plan: Mapping[str, Any], config: ResolvedRun | None, unit: str) -> list[str]:
    said = []
    memory = plan.get("memory_bytes")
    if isinstance(memory, Mapping) and "total" in memory:
        said.append(f"planned {gib(memory['total'])} per {unit}")
    if plan.get("mfu") and plan.get("step_seconds"):
        takes = f", {duration(_seconds(plan, config))}" if config is not None else ""
        said.append(f"planned {plan['mfu']:.0%} MFU{takes}")
    return said


def _seconds(plan: Mapping[str, Any], config: ResolvedRun) -> float:
    """That all steps are planned to take."""
    of_size = {stage["global_batch_size"]: stage["step_seconds"] for stage in plan.get("batch_size_warmup", ())}
    left, total = config.total_steps, 0.0
    for _, size, there in config.training.batch_sizes.stretches(0):
        steps = left if there is None else min(left, there)
        total += steps * of_size.get(size, plan["step_seconds"])
        left -= steps
    return total
