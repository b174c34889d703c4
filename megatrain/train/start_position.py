"""Where a start of a run begins: its newest checkpoint, other weights, or its seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatrain.checkpoint.manifest import read_manifest
from megatrain.config.resolved import ResolvedFinetune, ResolvedRun
from megatrain.monitor.sinks.console import Console
from megatrain.optim.registry import OPTIMIZERS
from megatrain.tasks.base import Loader
from megatrain.train.checkpointing import Checkpointer, Position
from megatrain.train.engine import Engine
from megatrain.train.weights import initialize_weights


def restore(
    config: ResolvedRun,
    engine: Engine,
    loader: Loader[Any],
    checkpointer: Checkpointer,
    console: Console,
    *,
    resume: str,
    layout: str,
    beat: Callable[[str], None],
) -> Position:
    """Bring weights, optimizer state and the position in the data to where the run resumes, and say so. Collective.

    Args:
        resume: see `Checkpointer.resume`.
        layout: of this run's ranks, in words.

    Raises:
        CheckpointError, DataError: see `Checkpointer` and `Loader.load_state_dict`.
    """
    position = checkpointer.resume(resume)
    if position.checkpoint is None:
        if base := _base_of(config):
            start = checkpointer.load_weights(Path(base))
            console.line(f"weights: from {start.folder}")
            if start.drawn:
                whose = "has no head" if config.model.num_labels is None else "gives a classifier no head"
                console.line(f"weights: {start.folder} {whose}; drawn from run.seed: {', '.join(start.drawn)}")
        else:
            initialize_weights(engine, config.model, config.run.seed, beat=beat)
        if name := OPTIMIZERS.get(config.optimizer.name).start_state:
            engine.keep_start(name)
    elif position.loader is not None:
        changes = loader.load_state_dict(position.loader)
        saved = read_manifest(position.checkpoint)
        console.resumed(
            position.progress,
            position.checkpoint,
            saved_ranks=saved.world_size,
            saved_layout=saved.layout,
            layout=layout,
        )
        for change in changes:
            console.line(change)
    return position


def _base_of(config: ResolvedRun) -> str | None:
    if isinstance(config, ResolvedFinetune):
        return config.finetune.base
    return config.continued.base if config.continued is not None else None
