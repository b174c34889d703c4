"""The same run on more and more nodes: `plan --sweep nodes=1,2,4,…`, as a table and a picture."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.planning.hardware import load_hardware
from launcher.planning.plan import make_plan
from launcher.planning.plan_result import Plan
from launcher.planning.reliability import Reliability, reliability
from launcher.planning.resolve import complete_model, complete_section
from launcher.planning.run_time import run_seconds
from megatrain.base.errors import ConfigError, PreflightError
from megatrain.base.formatting import duration, quantity
from megatrain.config import Config

MOST_NODES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run on one number of nodes; without a plan where no layout fits, and then with the reason."""

    nodes: int
    gpus: int
    plan: Plan | None
    reason: str = ""
    reliability: Reliability | None = None
    hours: float = 0.0  # of the whole run, checkpoints and failures included

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs, checkpoints and failures included."""
        if self.plan is None or self.reliability is None:
            return 0.0
        return self.plan.tokens_per_second_per_gpu * self.gpus * self.reliability.goodput

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    def to_json(self) -> dict[str, Any]:
        if self.plan is None or self.reliability is None:
            return {"nodes": self.nodes, "gpus": self.gpus, "reason": self.reason}
        return {
            "nodes": self.nodes,
            "gpus": self.gpus,
            "layout": self.plan.layout.to_json(),
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.plan.mfu,
            "goodput": self.reliability.goodput,
            "checkpoint_interval_seconds": self.reliability.interval_seconds,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
        }


def parse_sweep(text: str) -> list[int]:
    """Node counts of `nodes=1,2,4` or `nodes=1,2,4,…,1024`: an ellipsis goes on as the last two before it do.

    Raises:
        ConfigError: it is neither.
    """
    wrong = ConfigError(
        f"--sweep {text!r}: must be like nodes=1,2,4 or nodes=1,2,4,…,1024 (up to {MOST_NODES:,} nodes)"
    )
    match = re.fullmatch(r"nodes=(.+)", text.strip())
    if not match:
        raise wrong
    counts: list[int] = []
    parts = [part.strip() for part in match[1].split(",")]
    for index, part in enumerate(parts):
        if part in ("…", "..."):
            if len(counts) < 2 or index != len(parts) - 2 or not _is_count(parts[-1]):
                raise wrong
            counts += _continued(counts[-2], counts[-1], int(parts[-1]))
        elif _is_count(part):
            counts.append(int(part))
        else:
            raise wrong
    return sorted(set(counts))


def sweep(config: Config, nodes: Iterable[int]) -> list[Row]:
    """Plan the run on each number of nodes; the batch stays what it is."""
    config = complete_model(config)
    return [plan_on(config, count) for count in nodes]


def plan_on(config: Config, nodes: int, gpus_per_node: int | None = None) -> Row:
    """The run on a number of nodes. `config` has its inputs resolved."""
    model = complete_section(config)
    per_node = gpus_per_node or config.cluster.gpus_per_node
    cluster = config.cluster.model_copy(update={"nodes": nodes, "gpus_per_node": per_node})
    config = config.model_copy(update={"cluster": cluster})
    gpus = nodes * per_node
    try:
        plan = make_plan(config).chosen
    except PreflightError as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if line.startswith("nearest miss")), lines[0])
        return Row(nodes=nodes, gpus=gpus, plan=None, reason=reason)
    found = reliability(model, config.optimizer, cluster, nodes)
    hours = run_seconds(config, plan) / found.goodput / 3600
    return Row(nodes=nodes, gpus=gpus, plan=plan, reliability=found, hours=hours)


def sweep_text(config: Config, rows: Sequence[Row]) -> str:
    hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    lines = [
        f"{config.run.name} on {config.cluster.gpus_per_node} {hardware.name} a node, global batch "
        f"{config.training.global_batch_size}; a node fails every {config.cluster.node_mtbf_hours:,.0f} h",
        f"{'nodes':>6} {'GPUs':>7} {'tokens/s':>9} {'MFU':>6} {'good':>6} {'save every':>10} {'time':>8} "
        f"{'GPU-hours':>10}  layout",
    ]
    for row in rows:
        if row.plan is None or row.reliability is None:
            lines.append(f"{row.nodes:>6} {row.gpus:>7}  {row.reason}")
            continue
        lines.append(
            f"{row.nodes:>6} {row.gpus:>7} {quantity(row.tokens_per_second):>9} {row.plan.mfu:>6.1%} "
            f"{row.reliability.goodput:>6.1%} {duration(row.reliability.interval_seconds):>10} "
            f"{duration(row.hours * 3600):>8} {quantity(row.gpu_hours):>10}  {row.plan.layout}"
        )
    return "\n".join(lines)


def sweep_png(config: Config, rows: Sequence[Row], path: Path) -> None:
    """Throughput, MFU and cost over the number of GPUs.

    Raises:
        PreflightError: matplotlib is not installed, nothing fits, or the file cannot be written.
    """
    planned = [row for row in rows if row.plan is not None]
    if not planned:
        raise PreflightError("--png: no number of nodes has a layout that fits; there is nothing to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PreflightError("--png: needs matplotlib. Install it with: pip install 'megatrain[plot]'") from None
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    gpus = [row.gpus for row in planned]
    rate = [row.tokens_per_second for row in planned]
    panels = figure.subplots(1, 3)
    panels[0].plot(gpus, rate, "o-", label="planned")
    panels[0].plot(gpus, [rate[0] / gpus[0] * count for count in gpus], ":", label="linear")
    panels[0].set(title="tokens/s", xscale="log", yscale="log", xlabel="GPUs")
    panels[0].legend()
    panels[1].plot(gpus, [100 * row.plan.mfu for row in planned if row.plan], "o-", label="MFU")
    useful = [100 * row.plan.mfu * row.reliability.goodput for row in planned if row.plan and row.reliability]
    panels[1].plot(gpus, useful, "o--", label="with checkpoints and failures")
    panels[1].set(title="MFU, %", xscale="log", xlabel="GPUs", ylim=(0, None))
    panels[1].legend()
    panels[2].plot(gpus, [row.gpu_hours for row in planned], "o-")
    panels[2].set(title="GPU-hours of the run", xscale="log", xlabel="GPUs", ylim=(0, None))
    figure.suptitle(f"{config.run.name} on {config.cluster.hardware}")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise PreflightError(f"--png: {path}: cannot be written: {error.strerror}") from None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text[:7]) <= MOST_NODES and len(text) <= 6


def _continued(before: int, last: int, end: int) -> list[int]:
    """On to `end` by the ratio of two numbers where it is whole, else by their difference."""
    found, ratio, difference = [], last / before, last - before
    by_ratio = ratio > 1 and ratio.is_integer() and before * ratio * ratio > last + difference
    if not by_ratio and difference <= 0:
        return [end]
    while (last := int(last * ratio) if by_ratio else last + difference) < end:
        found.append(last)
    return [*found, end]
