"""`megatrain checkpoint verify`."""

import json

import typer

from launcher.commands.options import Json, RunOrCheckpoint, run_and_checkpoint
from megatrain.base.errors import CheckpointError, ExitCode
from megatrain.base.terminal import say


def verify(run: RunOrCheckpoint, as_json: Json = False) -> None:
    """Read every byte of a run's checkpoints and compare it with what was written; exit 5 where one differs.

    Example: megatrain checkpoint verify runs/llama-125m
    """
    from megatrain.checkpoint.manifest import verify
    from megatrain.checkpoint.metadata import check_contents

    where, one = run_and_checkpoint(run)
    folders = [one] if one is not None else [where.step(step) for step in where.step_folders()]
    found = {str(folder): verify(folder) or check_contents(folder) for folder in folders}
    if as_json:
        say(json.dumps([{"path": path, "problems": problems} for path, problems in found.items()], indent=2))
    else:
        for path, problems in found.items():
            say("\n".join(f"{path}: {problem}" for problem in problems) or f"{path}: intact")
    if not found:
        raise CheckpointError(f"{run}: holds no checkpoint (looked for {where.checkpoints}/step-*): nothing to verify")
    if any(found.values()):
        raise typer.Exit(ExitCode.CHECKPOINT)
