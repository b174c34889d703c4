"""What a continued pretraining takes from its base: the tokenizer, and the sources that are replayed."""

from collections.abc import Sequence
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.config import Config, PretrainConfig, Source, TokenizerSection
from megatrain.config.continued import ContinuedSection
from megatrain.config.file import load_own_config
from megatrain.run.directory import RunDir
from megatrain.run.inputs import base_run, own_tokenizer

_MOST_SOURCES = 64


def with_base(config: PretrainConfig, own: RunDir) -> PretrainConfig:
    """The same run with the base's tokenizer, and its sources in data.train. One that has begun keeps what it took.

    Args:
        own: the run's folder.

    Raises:
        ConfigError: the base is no run, has another model, or nothing to replay.
    """
    section = config.continued
    if section is None or config.run.branch is not None:  # a branch goes on from a run that has all of it
        return config
    begun = load_own_config(own.config) if own.steps() and own.config.is_file() else None
    if isinstance(begun, PretrainConfig) and begun.continued is not None:
        replayed, tokenizer = tuple(source for source in begun.data.train if source.replayed), begun.tokenizer
    else:
        run = base_run(section.base)
        if not run.config.is_file():
            raise ConfigError(
                f"continued.base: {section.base!r}: is not a run of megatrain, nor one of its checkpoints "
                f"({run.config} is missing)."
            )
        base = load_own_config(run.config)
        _check_model(config, base)
        path = own_tokenizer(run)
        tokenizer = TokenizerSection(path=str(path)) if path is not None else base.tokenizer
        replayed = _mixture(section, base)
    update: dict[str, Any] = {"tokenizer": config.tokenizer or tokenizer}
    if not any(source.replayed for source in config.data.train):  # else the file is what a run keeps
        sources = mixed(config.data.train, replayed, section.replay)
        if len(sources) > _MOST_SOURCES:
            raise ConfigError(f"data.train: has {len(sources)} sources with the base's; at most {_MOST_SOURCES}.")
        update["data"] = config.data.model_copy(update={"train": sources})
    return config.model_copy(update=update)


def mixed(new: Sequence[Source], old: Sequence[Source], replay: float) -> tuple[Source, ...]:
    """Both, where `replay` of the samples are of the old ones, in their own proportions."""
    if not replay or not old:
        return tuple(new)
    factor = sum(one.weight for one in new) * replay / (1 - replay) / sum(one.weight for one in old)
    return (*new, *(one.model_copy(update={"weight": one.weight * factor, "replayed": True}) for one in old))


def _mixture(section: ContinuedSection, base: Config) -> tuple[Source, ...]:
    """The base's sources, as its last phase weighed them."""
    if not section.replay:
        return ()
    if not isinstance(base, PretrainConfig) or base.data.sequential:
        kind = "reads tar files in sequence" if isinstance(base, PretrainConfig) else "is a fine-tuning"
        raise ConfigError(
            f"continued.replay: {section.replay}: {section.base} {kind}, and has no mixture to replay. Set it to 0, or "
            "name the run that was pretrained."
        )
    weights = next(
        (phase.weights for phase in reversed(base.data.phases) if phase.weights is not None),
        [source.weight for source in base.data.train],
    )
    sources = zip(base.data.train, weights, strict=True)
    return tuple(source.model_copy(update={"weight": weight}) for source, weight in sources if weight)


def _check_model(config: PretrainConfig, base: Config) -> None:
    """A model is written out in a run's own file, and perhaps by hand."""
    theirs = base.model
    left_out = {"adapter": None, "train_layers": None}
    if theirs is None or theirs.num_labels is not None:
        raise ConfigError("continued.base: is a classifier, and a language model is needed.")
    if theirs.model_copy(update=left_out) != config.model.model_copy(update=left_out):
        raise ConfigError("model: is not the base's (continued.base). Leave it out: it is taken from there.")
