"""`megatrain config show`."""

from launcher.commands.options import File, Overrides, load
from megatrain.base.terminal import say


def show(file: File, overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults included.

    Example: megatrain config show configs/llama-125m.yaml parallel.zero_stage=3
    """
    from megatrain.config.file import dump_config

    say(dump_config(load(file, overrides)), end="")
