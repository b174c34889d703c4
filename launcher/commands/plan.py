"""`megatrain plan`: the layout of a run, or an answer to a question about it."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import File, Json, Overrides, load
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import say

if TYPE_CHECKING:
    from megatrain.config import Config


def plan(
    file: File,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="plan for so many GPUs instead of the cluster's")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="plan on each number of nodes: nodes=1,2,4,…,1024", metavar="nodes=…")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="draw the sweep", metavar="FILE")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="GPUs needed to finish within so many days")] = None,
    largest: Annotated[bool, typer.Option("--largest", help="the largest batch and model that fit")] = False,
    double: Annotated[bool, typer.Option("--double", help="what twice the nodes would change")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="measure this machine, and write FILE as a profile for cluster.hardware")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose the layout of a run and say why, without a GPU; or answer one of the questions below.

    Example: megatrain plan configs/llama-7b.yaml cluster.nodes=16
    """
    if calibrate:
        from launcher.planning.calibrate import calibrate as measure

        say(measure(file, gpus))
        return
    from launcher.planning.assumed import assume

    config, assumed = assume(load(file, overrides), file)
    for sentence in assumed:
        say(f"assumed: {sentence}", file=sys.stderr)
    if gpus is not None:
        config = on_gpus(config, gpus)
    if sweep is not None:
        show_sweep(config, sweep, png, as_json)
    elif png is not None:
        raise ConfigError("--png: draws a sweep; give --sweep nodes=1,2,4 as well.")
    elif days is not None or largest or double:
        answer(config, days=days, largest=largest, double=double)
    else:
        show_plan(config, as_json, assumed)


def on_gpus(config: "Config", gpus: int) -> "Config":
    """The run on `gpus` GPUs: a part of one node, or whole nodes.

    Raises:
        ConfigError: it is neither.
    """
    from launcher.planning.hardware import load_hardware

    hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    per_node = hardware.max_ranks_per_node or config.cluster.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise ConfigError(
            f"--gpus {gpus}: must be at most {per_node}, or a multiple of it: a node of {hardware.name} has {per_node}."
        )
    nodes, each = (1, gpus) if gpus <= per_node else (gpus // per_node, per_node)
    cluster = config.cluster.model_copy(update={"nodes": nodes, "gpus_per_node": each})
    return config.model_copy(update={"cluster": cluster})


def show_plan(config: "Config", as_json: bool, assumed: Sequence[str] = ()) -> None:
    """Print the plan.

    Args:
        assumed: what it takes for granted, a sentence each; see planning/assumed.py.
    """
    from launcher.commands.render import plan_text
    from launcher.planning.plan import decided, make_plan
    from launcher.planning.plan_result import NothingFitsError

    try:
        report = make_plan(config)
    except NothingFitsError as error:
        if as_json:
            say(json.dumps({**error.to_json(), "assumed": list(assumed)}, indent=2))
        raise
    if as_json:
        say(json.dumps({**report.to_json(), "assumed": list(assumed)}, indent=2))
    else:
        say(plan_text(decided(config, report.chosen), report))


def show_sweep(config: "Config", text: str, png: Path | None, as_json: bool) -> None:
    """Print the plan on each number of nodes, and draw it."""
    from launcher.planning import sweep
    from launcher.planning.resolve import complete_model

    rows = sweep.sweep(config, sweep.parse_sweep(text))
    if png is not None:
        sweep.sweep_png(config, rows, png)
    if as_json:
        say(json.dumps([row.to_json() for row in rows], indent=2))
        return
    say(sweep.sweep_text(complete_model(config), rows))
    if png is not None:
        say(f"drawn: {png}")


def answer(config: "Config", *, days: float | None, largest: bool, double: bool) -> None:
    """Print what was asked for."""
    from launcher.planning import what_if

    if days is not None:
        say(what_if.gpus_for_days(config, days))
    if largest:
        say(what_if.largest_batch(config))
        say(what_if.largest_model(config))
    if double:
        say(what_if.doubling(config))
