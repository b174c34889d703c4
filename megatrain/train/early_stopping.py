"""Ends a run whose evaluations get no better, and knows its best checkpoint."""

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from megatrain.base.errors import ConfigError
from megatrain.base.terminal import copyable
from megatrain.checkpoint.best import Best, is_over
from megatrain.config.early_stopping import EarlyStoppingSection
from megatrain.monitor.metric import METRICS
from megatrain.run.directory import RunDir


class EarlyStopping:
    """Without a section it ends nothing.

    Args:
        group: a gloo group of all ranks: they look at rank 0's value.
        best: what the checkpoint says that the run goes on from.
    """

    def __init__(
        self,
        section: EarlyStoppingSection | None = None,
        group: dist.ProcessGroup | None = None,
        best: Best | None = None,
    ) -> None:
        self._section = section
        self._group = group
        self.best = best if section is not None and best is not None and best.metric == section.metric else None

    @property
    def is_over(self) -> bool:
        return is_over(self._section, self.best)

    def check(self, metrics: Mapping[str, float]) -> None:
        """
        Args:
            metrics: of an evaluation.

        Raises:
            ConfigError: the one that is looked at is not among them.
        """
        if self._section is None or self._section.metric in metrics:
            return
        there = f"there are: {', '.join(metrics)}" if metrics else "there is no validation data"
        raise ConfigError(
            f"training.early_stopping.metric: {self._section.metric!r}: is not measured by this run's evaluations; "
            f"{there}"
        )

    def look(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is the best so far. Collective."""
        if self._section is None:
            return False
        self.check(metrics)
        value = torch.tensor(metrics[self._section.metric], dtype=torch.float64)
        dist.broadcast(value, 0, group=self._group)
        if self.best is None:
            self.best = Best(metric=self._section.metric, value=value.item(), step=step)
        else:
            self.best = self.best.after(self._section, step, value.item())
        return self.best.step == step

    def lines(self, run: RunDir) -> Iterator[str]:
        """What there is to say at the end of the run."""
        if self._section is None or self.best is None:
            return
        best = self.best
        shown = METRICS.get(best.metric).format(best.value)
        if self.is_over:
            yield f"early stopping: {best.metric} was no better in {best.since} evaluations after step {best.step:,}"
        folder = run.step(best.step)
        gone = "" if folder.is_dir() else " (it is not there any more)"
        yield f"best checkpoint: {copyable(folder)} ({best.metric} {shown}){gone}"
