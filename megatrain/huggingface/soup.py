"""Checkpoints of several runs whose mean is a model: a soup (arXiv 2203.05482)."""

from collections.abc import Sequence
from pathlib import Path

from megatrain.base.errors import ConfigError
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.state import read_state
from megatrain.run.directory import locate
from megatrain.run.inputs import kept_tokenizer_sha256, load_run

_OF_TRAINING = {"adapter", "train_layers", "initializer_range"}  # how a model was trained, not what its weights are


def soup(paths: Sequence[Path]) -> list[Path]:
    """Of each path its checkpoint: of a run, the newest that verifies.

    Args:
        paths: at least two, of runs that were fine-tuned from one base: of others the mean is no model.

    Raises:
        CheckpointError: one of them has no whole checkpoint.
        ConfigError: they are not of one model, with one tokenizer and the same labels; or one is there twice.
    """
    found: list[Path] = []
    for path in paths:
        checkpoint = find_checkpoint(path)
        if checkpoint.resolve() in {one.resolve() for one in found}:
            raise ConfigError(f"--average {path}: is {checkpoint}, which is averaged already. Leave it out")
        if found:
            _check_same(found[0], checkpoint)
        found.append(checkpoint)
    return found


def _check_same(first: Path, other: Path) -> None:
    models = [read_state(one).model.merged for one in (first, other)]
    for name in {name for model in models for name in type(model).model_fields} - _OF_TRAINING:
        mine, its = (getattr(model, name, None) for model in models)
        if mine != its:
            raise ConfigError(
                f"--average: {other}: has model.{name}={its!r}, {first} has {mine!r}: weights of different models have "
                "no mean"
            )
    runs = [locate(one)[0] for one in (first, other)]
    tokenizers = [kept_tokenizer_sha256(run) for run in runs]
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        raise ConfigError(f"--average: {other}: has another tokenizer than {first}: their token ids mean other things")
    labels = [load_run(run).task.classes for run in runs]
    if labels[0] != labels[1]:
        raise ConfigError(
            f"--average: {other}: has the labels {', '.join(labels[1])}, {first} has {', '.join(labels[0])}: name the "
            "same in the same order in task.labels"
        )
