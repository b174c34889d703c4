"""Stops a run at the first numbers that are not finite, before anything good is lost to them.

The engine keeps such an update, and each that follows, from weights and optimizer state, without the host: see
`Engine.step`. So the host need not look at once. A norm that it has already (a float, or a tensor on the CPU) is
looked at in each step. One that is on a GPU is noted there, and read where the host waits for the device anyway:
at reports, and before each evaluation, save and the end.
"""

import math
import shlex
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.base.errors import NonFiniteError
from megatrain.base.progress import Progress
from megatrain.config import Config, PretrainConfig
from megatrain.run.directory import RunDir

_SHOWN = 8  # ranks or tensors that a message names


class FiniteGuard:
    """Every method is called by all ranks alike, and raises on all of them or on none.

    Args:
        group: a gloo group of all ranks; used only by evaluations, saves, and what ends the run.
    """

    def __init__(self, config: Config, run: RunDir, group: dist.ProcessGroup, device: torch.device) -> None:
        self._config = config
        self._run = run
        self._group = group
        self._first = torch.zeros(3, dtype=torch.float64, device=device)  # step, norm, this rank's loss; 0: none yet

    def step(self, progress: Progress, loss: Tensor, grad_norm: float | Tensor) -> None:
        """Note an optimizer step, and stop where its norm is on the host and not finite.

        Args:
            progress: after the step.
            loss: this rank's, fp32.
            grad_norm: what `Engine.step` returned for it; the same on every rank.

        Raises:
            NonFiniteError: see `demand`.
        """
        on_host = not isinstance(grad_norm, Tensor) or grad_norm.device.type == "cpu"
        if on_host and math.isfinite(grad_norm):
            return
        self.note(progress, loss, grad_norm)
        if on_host:
            self.demand(progress)

    def note(self, progress: Progress, loss: Tensor, grad_norm: float | Tensor) -> None:
        """As `step`, for `demand` to find later: on the device, without waiting for it."""
        values = (progress.step, grad_norm, loss)
        seen = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self._first.device) for v in values])
        is_first = (self._first[0] == 0) & ~torch.isfinite(seen[1])
        self._first = torch.where(is_first, seen, self._first)

    def demand(self, progress: Progress) -> None:
        """Waits for the device.

        Raises:
            NonFiniteError: the gradient norm or the loss of a step up to `progress` was not finite.
        """
        step, norm, loss = self._first.tolist()
        if not step:
            return
        ranks = self._ranks_where(not math.isfinite(loss))
        if ranks:
            what = f"the loss is not finite on {_few('rank', ranks)} of {dist.get_world_size(self._group)}"
        else:
            what = f"the gradient norm is {norm:g}, though the loss is finite on every rank"
        raise NonFiniteError(f"step {int(step):,}: {what}; its update was not kept. {self._batch(progress, int(step))}")

    def evaluation(self, progress: Progress, metrics: Mapping[str, float], own_sums: Mapping[str, float]) -> None:
        """
        Args:
            metrics: over all ranks.
            own_sums: what this rank added to them.

        Raises:
            NonFiniteError: one of them is not finite.
        """
        ranks = self._ranks_where(not all(map(math.isfinite, own_sums.values())))
        wrong = [name.replace("_", " ") for name, value in metrics.items() if not math.isfinite(value)]
        if ranks or self._ranks_where(bool(wrong)):
            seen = f" (seen by {_few('rank', ranks)} of {dist.get_world_size(self._group)})" if ranks else ""
            what = f"the {' and the '.join(wrong)}" if wrong else "a sum of the evaluation"
            raise NonFiniteError(f"step {progress.step:,}: {what} is not finite{seen}. {self._newest_checkpoint()}")

    def saving(self, progress: Progress, not_finite: list[str]) -> None:
        """
        Args:
            not_finite: what `Engine.not_finite` finds on this rank.

        Raises:
            NonFiniteError: there is something on any rank.
        """
        found: list[list[str]] = [[]] * dist.get_world_size(self._group)
        dist.all_gather_object(found, not_finite, group=self._group)
        ranks = [rank for rank, names in enumerate(found) if names]
        if ranks:
            names = sorted({name for names in found for name in names})
            raise NonFiniteError(
                f"step {progress.step:,}: {_few('tensor', names)} not finite after its update on "
                f"{_few('rank', ranks)}; it is not saved. {self._batch(progress, progress.step)}"
            )

    def _ranks_where(self, mine: bool) -> list[int]:
        found: list[bool] = [False] * dist.get_world_size(self._group)
        dist.all_gather_object(found, mine, group=self._group)
        return [rank for rank, theirs in enumerate(found) if theirs]

    def _batch(self, progress: Progress, step: int) -> str:
        """Which samples the step had read, how to look at them, and what else to do."""
        sizes = self._config.training.batch_sizes
        first = progress.samples_at(step - 1, sizes)
        size = progress.samples_at(step, sizes) - first
        lines = [f"Its batch: samples {first:,} to {first + size - 1:,}. {self._newest_checkpoint()}"]
        if isinstance(self._config, PretrainConfig) and not self._config.data.sequential:
            run = shlex.quote(str(self._run))
            lines.append(f"look at the batch: megatrain data stream {run} --start {first} --count {size} --text")
        lines.append("lower optimizer.learning_rate, set optimizer.gradient_clipping, or leave bad data out")
        return "\n".join(lines)

    def _newest_checkpoint(self) -> str:
        newest = self._run.steps()[-1:]
        return f"The newest checkpoint is of step {newest[0]:,}" if newest else "There is no checkpoint yet"


def _few(kind: str, things: list[int] | list[str]) -> str:
    shown = ", ".join(map(str, things[:_SHOWN])) + (", …" if len(things) > _SHOWN else "")
    return f"{kind}{'s' if len(things) > 1 else ''} {shown}"
