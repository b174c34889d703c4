"""`megatrain stop`."""

import time
from typing import Annotated

import typer

from launcher.commands.options import Run, existing_run
from megatrain.base.errors import PreflightError
from megatrain.base.terminal import copyable, say


def stop(
    run: Run,
    now: Annotated[bool, typer.Option("--now", help="without a checkpoint")] = False,
    timeout: Annotated[int, typer.Option(min=0, help="seconds to wait for the end; 0: do not")] = 0,
) -> None:
    """Let a run save and stop, wherever it runs, and keep it from being requeued.

    Example: megatrain stop runs/llama-125m
    """
    from launcher.runs.status import run_status
    from launcher.runs.stop import stop_run

    folder = existing_run(run)
    say(stop_run(folder, now=now))
    deadline = time.monotonic() + timeout
    while timeout and (state := run_status(folder).state) in ("running", "pending"):
        if time.monotonic() > deadline:
            raise PreflightError(
                f"{run}: is still {state} after {timeout} s; `megatrain stop {copyable(run)} --now` ends it"
            )
        time.sleep(1.0)
