"""`megatrain logs`."""

from typing import Annotated

import typer

from launcher.commands.options import Run, existing_run
from megatrain.base.terminal import say


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the run ends")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="of the end, to begin with")] = 100,
    rank: Annotated[int | None, typer.Option(min=0, help="of a run on this machine")] = None,
) -> None:
    """What a run prints.

    Example: megatrain logs runs/llama-125m -f
    """
    from launcher.runs.logs import read_log

    for text in read_log(existing_run(run), lines=lines, rank=rank, follow=follow):
        say(text, end="", flush=True)
