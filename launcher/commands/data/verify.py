"""`megatrain data verify`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatrain.base.errors import DataError
from megatrain.base.terminal import say


def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="prepared folders")],
) -> None:
    """Hash every byte of prepared folders; exits with 4 and names each damaged file.

    \b
    megatrain data verify data/web data/validation
    """
    from megatrain.data.checks.verify import find_damage

    damage: list[str] = []
    for folder in folders:
        try:
            found = list(find_damage(folder, sys.stderr))
        except DataError as error:
            found = [str(error)]
        damage += found
        if not found:
            say(f"{folder}: every byte is as it was written")
    if damage:
        raise DataError("\n".join(damage))
