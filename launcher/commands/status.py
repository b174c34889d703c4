"""`megatrain status`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import Json, existing_run
from megatrain.base.terminal import say

OptionalRun = Annotated[Path | None, typer.Argument(help="default: every run in runs/", metavar="[RUN]")]


def status(run: OptionalRun = None, as_json: Json = False) -> None:
    """Where a run is: job, step, speed, time left, restarts, goodput, last checkpoint, last error.

    Example: megatrain status runs/llama-125m
    """
    from launcher.runs.status import all_statuses, lines, run_status, table

    if run is not None:
        one = run_status(existing_run(run))
        say(json.dumps(one.to_json(), indent=2) if as_json else "\n".join(lines(one)))
        return
    many = all_statuses(Path("runs"))
    if as_json:
        say(json.dumps([one.to_json() for one in many], indent=2))
    else:
        say("\n".join(table(many)) or "runs/ holds no run")
