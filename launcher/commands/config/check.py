"""`megatrain config check`."""

from launcher.commands.options import File, Overrides, load
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import say


def check(file: File, overrides: Overrides = None) -> None:
    """Report every mistake of a file at once.

    Example: megatrain config check configs/llama-125m.yaml training.steps=100
    """
    from megatrain.config.rules import warmup_issue

    config = load(file, overrides)
    if problem := warmup_issue(config):
        raise ConfigError(f"{file}: {problem.field}: {problem.value}: {problem.rule}. {problem.fix}")
    say(f"{file}: no mistakes ({type(config).__name__.removesuffix('Config').lower()} run {config.run.name})")
