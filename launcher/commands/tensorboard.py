"""`megatrain tensorboard`."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import existing


def tensorboard(
    runs: Annotated[list[Path] | None, typer.Argument(help="default: every run in runs/", metavar="[RUN]...")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 6006,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be seen from other machines")] = "localhost",
) -> None:
    """Look at runs in TensorBoard.

    Example: megatrain tensorboard runs/llama-125m runs/llama-1b --port 6007
    """
    folders = [existing(run) for run in runs or [Path("runs")]]
    where = ["--logdir", str(folders[0])]
    if len(folders) > 1:
        where = ["--logdir_spec", ",".join(f"{folder.name}:{folder}" for folder in folders)]
    command = [sys.executable, "-P", "-m", "tensorboard.main", *where, "--port", str(port), "--host", host]
    raise typer.Exit(subprocess.call(command))
