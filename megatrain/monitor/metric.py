"""What a metric is, and the registry of all: each is registered by the module that computes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from megatrain.base.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that a run reports under the name it is registered by, the key of its value in metrics.jsonl.

    Attributes:
        unit: of the value.
        tag: TensorBoard's name of the chart; None: it is not charted.
        tag_scale: the chart shows the value times this.
        format: the value as people read it.
        console: its text on the line of a report, of `{value}`, as `format` writes it, and `{device}`, "GPU" or
            "rank"; None: it is not on the line.
        over_steps: how the values of the steps since the last report become one.
        over_ranks: how those of the data- and context-parallel ranks do; "first" takes rank 0's as it is.
    """

    unit: str
    tag: str | None
    tag_scale: float = 1.0
    format: Callable[[float], str] = "{:.4g}".format
    console: str | None = None
    over_steps: Literal["mean", "last"] = "last"
    over_ranks: Literal["sum", "max", "first"] = "first"

    def text(self, value: float, device: str) -> str | None:
        return None if self.console is None else self.console.format(value=self.format(value), device=device)


class Metrics(Registry[Metric]):
    """Of a validation set that has a name, "NAME/metric" is registered metric "metric"."""

    def get(self, name: str) -> Metric:
        of_set, metric = self.split(name)
        found = super().get(metric)
        if not of_set or found.tag is None:
            return found
        return replace(
            found, tag=f"validation/{of_set}/{found.tag.removeprefix('validation/').removeprefix('validation_')}"
        )

    def split(self, name: str) -> tuple[str, str]:
        """The validation set, "" where there is none, and the metric. A metric may have a slash in its own name."""
        of_set, slash, metric = name.partition("/")
        return (of_set, metric) if slash and name not in self and metric in self else ("", name)


METRICS = Metrics("metric")
