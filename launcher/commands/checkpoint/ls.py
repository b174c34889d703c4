"""`megatrain checkpoint ls`."""

import json

from launcher.commands.options import Json, RunOrCheckpoint, run_and_checkpoint
from megatrain.base.terminal import complain, copyable, say


def ls(run: RunOrCheckpoint, as_json: Json = False) -> None:
    """List a run's checkpoints.

    Example: megatrain checkpoint ls runs/llama-125m
    """
    from megatrain.checkpoint.manifest import list_checkpoints

    where, _ = run_and_checkpoint(run)
    found = list_checkpoints(where)
    listed = {info.step for info in found}
    for step in where.step_folders():
        if step not in listed:
            text = f"{where.step(step)}: has no manifest that can be read"
            complain(f"{text}; `megatrain checkpoint verify {copyable(run)}`", "warning")
    if as_json:
        fields = ("step", "path", "bytes", "files", "world_size", "layout", "saved_at")
        say(json.dumps([{name: getattr(info, name) for name in fields} for info in found], indent=2, default=str))
        return
    for info in found:
        size = f"{info.bytes / 2**20:,.1f} MiB"
        say(f"step {info.step:>9,}  {size:>14}  {info.files:>3} files  {info.saved_at}  {info.layout}")
    if not where.step_folders():
        say(f"{run} has no checkpoint yet")
