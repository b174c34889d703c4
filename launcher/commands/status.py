"""`megatrain status`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import Json, existing_run
from megatrain.base.formatting import duration, quantity
from megatrain.base.terminal import say

if TYPE_CHECKING:
    from launcher.runs.status import Status

OptionalRun = Annotated[Path | None, typer.Argument(help="default: every run in runs/", metavar="[RUN]")]


def status(run: OptionalRun = None, as_json: Json = False) -> None:
    """Where a run is: job, step, speed, time left, restarts, goodput, last checkpoint, last error.

    Example: megatrain status runs/llama-125m
    """
    from launcher.runs.status import all_statuses, run_status

    if run is not None:
        one = run_status(existing_run(run))
        say(json.dumps(one.to_json(), indent=2) if as_json else "\n".join(lines(one)))
        return
    many = all_statuses(Path("runs"))
    if as_json:
        say(json.dumps([one.to_json() for one in many], indent=2))
    else:
        say("\n".join(table(many)) or "runs/ holds no run")


def lines(one: "Status") -> list[str]:
    """For a person: a line per fact."""
    progress = f"step {one.step:,} of {one.total_steps:,}"
    facts = {
        "state": f"{one.state}{': ' + one.detail if one.detail else ''}",
        "progress": progress + (f", loss {one.loss:.3f}" if one.loss is not None else ""),
        "speed": f"{quantity(one.tokens_per_second)} tokens/s" if one.tokens_per_second else None,
        "eta": duration(one.eta_seconds) if one.eta_seconds and one.state in ("running", "pending") else None,
        "attempts": f"{one.attempts} ({one.restarts} restarts)" if one.attempts else None,
        "goodput": f"{one.goodput:.0%} of the time on its nodes" if one.goodput is not None else None,
        "saved": one.checkpoint,
        "error": one.last_error,
    }
    return [one.run, *(f"  {name:<9}{value}" for name, value in facts.items() if value)]


def table(many: "list[Status]") -> list[str]:
    """For a person: a line per run."""
    if not many:
        return []
    width = max(len(one.run) for one in many)

    def line(one: "Status") -> str:
        rate = f"{quantity(one.tokens_per_second):>7} tok/s" if one.tokens_per_second else " " * 13
        left = f"eta {duration(one.eta_seconds or 0):>7}" if one.state == "running" else " " * 11
        progress = f"step {one.step:>9,}/{one.total_steps:<9,}"
        return f"{one.run:<{width}}  {one.state:<9} {progress}  {rate}  {left}  {one.detail}"

    return [line(one).rstrip() for one in many]
