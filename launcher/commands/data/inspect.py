"""`megatrain data inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import Json
from megatrain.base.terminal import printable_json, say


def inspect(
    folder: Annotated[Path, typer.Argument(help="a prepared folder")],
    png: Annotated[Path | None, typer.Option(help="also draw the lengths of documents into this file")] = None,
    as_json: Json = False,
) -> None:
    """Show what a prepared folder holds: sources, tokens, document lengths, how it begins.

    \b
    megatrain data inspect data/web --png lengths.png
    megatrain data inspect data/web --json | jq .tokens
    """
    from megatrain.data.checks.inspection import inspect_data

    found = inspect_data(folder)
    say(printable_json(found.as_json()) if as_json else found.as_text())
    if png:
        found.draw(png)
