"""`megatrain doctor`."""

import json
from pathlib import Path

import typer

from launcher.commands.options import Json
from megatrain.base.errors import ExitCode
from megatrain.base.terminal import say


def doctor(as_json: Json = False) -> None:
    """Say what this machine has for a run, and what has problems; exit 3 when something is.

    Example: megatrain doctor
    """
    from launcher.preflight.doctor import examine

    checks = examine(Path("runs"))
    if as_json:
        say(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            say(f"{check.level:<8}{check.name:<14}{check.value}{'. ' + check.fix if check.fix else ''}")
    if any(check.level == "error" for check in checks):
        raise typer.Exit(ExitCode.PREFLIGHT)
