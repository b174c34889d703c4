"""Of the preflight, where a continued pretraining starts."""

from collections.abc import Iterator

from launcher.planning.resolve import run_folder
from launcher.preflight.finding import Finding
from megatrain.base.errors import ExitCode
from megatrain.config import PretrainConfig
from megatrain.run.inputs import base_run


def check_continued(config: PretrainConfig) -> Iterator[Finding]:
    """A run with checkpoints of its own needs the base no more."""
    if config.continued is None or run_folder(config).steps():
        return
    base = base_run(config.continued.base)
    if not base.steps():
        yield Finding("error", f"continued.base: {base} has no checkpoint yet.", ExitCode.CHECKPOINT)
    replayed = [source for source in config.data.train if source.replayed]
    if replayed:
        share = sum(source.weight for source in replayed) / sum(source.weight for source in config.data.train)
        names = ", ".join(source.path for source in replayed)
        yield Finding("note", f"continued.replay: {share:.1%} of the samples are from {names}")
