"""What `megatrain plan` prints."""

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.render import plan_text
from launcher.planning import what_if
from launcher.planning.hardware import load_hardware
from launcher.planning.plan import NothingFitsError, make_plan, resolve
from launcher.planning.resolve import complete_model
from launcher.planning.sweep import parse_sweep, sweep, sweep_png, sweep_text
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import say
from megatrain.config import Config


def on_gpus(config: Config, gpus: int) -> Config:
    """The run on `gpus` GPUs: a part of one node, or whole nodes.

    Raises:
        ConfigError: it is neither.
    """
    hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    per_node = hardware.max_ranks_per_node or config.cluster.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise ConfigError(
            f"--gpus {gpus}: must be at most {per_node}, or a multiple of it: a node of {hardware.name} has {per_node}."
        )
    nodes, each = (1, gpus) if gpus <= per_node else (gpus // per_node, per_node)
    cluster = config.cluster.model_copy(update={"nodes": nodes, "gpus_per_node": each})
    return config.model_copy(update={"cluster": cluster})


def show_plan(config: Config, as_json: bool, assumed: Sequence[str] = ()) -> None:
    """Print the plan.

    Args:
        assumed: what it takes for granted, a sentence each; see planning/assumed.py.
    """
    try:
        report = make_plan(config)
    except NothingFitsError as error:
        if as_json:
            say(json.dumps({**error.to_json(), "assumed": list(assumed)}, indent=2))
        raise
    if as_json:
        say(json.dumps({**report.to_json(), "assumed": list(assumed)}, indent=2))
    else:
        say(plan_text(resolve(config, report.chosen), report))


def show_sweep(config: Config, text: str, png: Path | None, as_json: bool) -> None:
    rows = sweep(config, parse_sweep(text))
    if png is not None:
        sweep_png(config, rows, png)
    if as_json:
        say(json.dumps([row.to_json() for row in rows], indent=2))
        return
    say(sweep_text(complete_model(config), rows))
    if png is not None:
        say(f"drawn: {png}")


def answer(config: Config, *, days: float | None, largest: bool, double: bool) -> None:
    if days is not None:
        say(what_if.gpus_for_days(config, days))
    if largest:
        say(what_if.largest_batch(config))
        say(what_if.largest_model(config))
    if double:
        say(what_if.doubling(config))
