"""Values of metrics between two reports, left on the device they were computed on."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.monitor.metric import METRICS

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class Collector:
    """Reduces values over steps and ranks as their metrics say.

    Args:
        group: the data- and context-parallel ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._values: dict[str, list[float | Tensor]] = {}

    def add(self, values: Mapping[str, float | Tensor]) -> None:
        """The values of one step. A tensor is [] and is not read, so the host does not wait for the device.

        Raises:
            ConfigError: a name is of no registered metric.
        """
        for name, value in values.items():
            if METRICS.get(name).over_steps == "last":
                self._values[name] = [value]
            else:
                self._values.setdefault(name, []).append(value)

    def collect(self) -> dict[str, float]:
        """One value of each metric since the last call, in the order in which they were added. Collective; waits for
        the device."""
        found = {name: _mean(values) for name, values in self._values.items()}
        self._values.clear()
        for kind, operation in _OPERATIONS.items():
            names = [name for name in found if METRICS.get(name).over_ranks == kind]
            if names:
                stacked = torch.stack([torch.as_tensor(found[name]) for name in names])
                dist.all_reduce(stacked, op=operation, group=self._group)
                found |= dict(zip(names, stacked.tolist(), strict=True))
        return {name: float(value) for name, value in found.items()}


def _mean(values: list[float | Tensor]) -> float | Tensor:
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], Tensor):
        return torch.stack([torch.as_tensor(value) for value in values]).mean()
    return sum(map(float, values)) / len(values)
