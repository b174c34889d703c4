"""What a configuration takes from other files: the vocabulary from the data, a fine-tuning's model from its base."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from launcher.planning.continued import with_base
from launcher.planning.examples import example_set
from launcher.planning.precision import with_precision
from megatrain.base.errors import ConfigError, DataError, MegatrainError
from megatrain.base.registry import load_object
from megatrain.config import AUTO, Config, FinetuneConfig, ModelSection, PretrainConfig, TokenizerSection
from megatrain.config.file import load_own_config
from megatrain.config.rules import task_issues
from megatrain.config.trained import base_issues
from megatrain.data.folder.manifest import TOKENIZER, read_manifest
from megatrain.data.text.tokenizer_files import read_tokenizer, tokenizer_file
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.huggingface.config_json import is_pretrained, read_pretrained
from megatrain.model.family import FAMILIES
from megatrain.run.directory import RunDir
from megatrain.run.inputs import base_run, load_run, own_tokenizer
from megatrain.tasks.registry import TASKS, TaskSection

LONGEST_BY_DEFAULT = 4096  # tokens, where a pretrained model could take more
SHORTEST_EXAMPLE = 2  # tokens
VOCABULARY_MULTIPLE = 128  # so that it divides over tensor-parallel ranks, and fills matmul tiles


def complete_model(config: Config) -> Config:
    """The same run with its model and precision complete: no `auto` vocabulary, and in a fine-tuning the base's model
    and tokenizer.

    Raises:
        ConfigError, DataError: a file that holds the answer is absent or unreadable.
    """
    config = with_precision(config)
    if isinstance(config, FinetuneConfig):
        return _with_base(config)
    config = with_base(config, run_folder(config))
    model = config.model
    if model.vocab_size == AUTO and not model.names_vocabulary:
        model = _with_vocabulary(model, _vocabulary(config))
    if (complete := FAMILIES.get(model.family).complete) is not None:
        model = complete(model, from_seed=config.continued is None)
        _refuse_issues(task_issues(config, model))
    return config if model is config.model else config.model_copy(update={"model": model})


def complete_section(config: Config) -> ModelSection:
    """The model of a run that `complete_model` has been through."""
    if config.model is None:
        raise ValueError("the model is taken from the base, which complete_model reads")
    return config.model


def run_folder(config: Config) -> RunDir:
    return RunDir(Path(config.run.directory) / config.run.name)


def tokenizer_path(config: Config) -> str | None:
    """Where the run's tokenizer is read from: its own copy once it has checkpoints, else where the file says."""
    own = own_tokenizer(run_folder(config)) if run_folder(config).steps() else None
    given = config.tokenizer.path if config.tokenizer is not None else None
    return str(own) if own is not None else given


def base_positions(base: str) -> int | None:
    """Tokens of the longest sequences that `finetune.base` was trained on; None where there is no such base."""
    try:
        run = base_run(base)
        if run.config.is_file():
            return load_own_config(run.config).sequence_length
        return read_pretrained(Path(base))[1] if is_pretrained(Path(base)) else None
    except MegatrainError:
        return None  # whoever takes the model from it says why


def tokenizer_vocabulary(path: str) -> int:
    """Ids in a tokenizer: the largest, plus one.

    Raises:
        DataError, PreflightError: the file is absent, or is no tokenizer.
    """
    file = tokenizer_file(path)
    if not file.exists():
        raise DataError(
            f"tokenizer.path: {file}: cannot be read: No such file or directory. "
            "Make it with `megatrain data tokenizer train`; "
            "to plan without one, give a number such as model.vocab_size=32768."
        )
    try:
        return parse_vocabulary(read_tokenizer(path)[TOKENIZER], file).size
    except MegatrainError as error:
        raise type(error)(f"tokenizer.path: {error}") from None


def _vocabulary(config: PretrainConfig) -> int:
    first, tokenizer = config.data.train[0].path, tokenizer_path(config)
    if tokenizer is None or (Path(first).exists() and not config.data.sequential):
        return read_manifest(first).vocab_size
    return tokenizer_vocabulary(tokenizer)


def _with_vocabulary(model: ModelSection, size: int) -> ModelSection:
    return model.model_copy(update={"vocab_size": -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE})


class _Base(NamedTuple):
    """What a fine-tuning takes from where it starts."""

    model: ModelSection | None
    tokenizer: TokenizerSection | None
    sequence_length: int


def _base(given: str) -> _Base:
    run = base_run(given)
    if run.config.is_file():
        config = load_run(run)
        return _Base(config.model, config.tokenizer, config.sequence_length)
    if is_pretrained(Path(given)):
        model, longest = read_pretrained(Path(given))
        file = tokenizer_file(given)
        path = given if file.name == TOKENIZER else str(file)
        tokenizer = TokenizerSection(path=path) if file.exists() else None
        return _Base(model, tokenizer, min(longest, LONGEST_BY_DEFAULT))
    raise ConfigError(
        f"finetune.base: {given!r}: is not a run ({run.config} is missing), and not a model in Hugging Face's format. "
        "Give the folder of a megatrain run, one of its checkpoints, or a folder with config.json and safetensors."
    )


def _own(config: FinetuneConfig) -> FinetuneConfig | None:
    """What the run itself says, once it has checkpoints."""
    run = run_folder(config)
    own = load_own_config(run.config) if run.steps() and run.config.is_file() else None
    return own if isinstance(own, FinetuneConfig) else None


def _begun(config: FinetuneConfig) -> _Base | None:
    """What the run itself is made of, once it has checkpoints: it needs its base no more."""
    own = _own(config)
    if own is None or own.model is None or own.finetune.sequence_length is None:
        return None
    return _Base(own.model, own.tokenizer, own.sequence_length)


def _complete_task(config: FinetuneConfig) -> TaskSection:
    """With what it takes from the training examples; a run that has begun keeps what it took."""
    complete = TASKS.get(config.task.name).complete
    if not complete:
        return config.task
    own = _own(config)
    before = own.task if own is not None and own.task.name == config.task.name else None
    section: TaskSection = load_object(complete)(config.task, config.finetune.train, before)
    return section


def _given(config: FinetuneConfig) -> _Base | None:
    """What the file itself says, where that is everything: the base may then be away while the run is planned."""
    length = config.finetune.sequence_length
    if config.model is None or config.tokenizer is None or length is None:
        return None
    return _Base(config.model, config.tokenizer, length)


def _with_base(config: FinetuneConfig) -> FinetuneConfig:
    base = _begun(config) or _given(config) or _base(config.finetune.base)
    found: dict[str, Any] = {"model": config.model or base.model, "tokenizer": config.tokenizer or base.tokenizer}
    if found["tokenizer"] is None:
        raise ConfigError(
            f"tokenizer: {config.finetune.base} has none; add `tokenizer: {{path: …}}`, the one it was trained with."
        )
    length = config.finetune.sequence_length or base.sequence_length
    if length < SHORTEST_EXAMPLE:
        raise ConfigError(
            f"finetune.sequence_length: {length}: must be at least {SHORTEST_EXAMPLE}, a token and what follows it."
        )
    finetune = config.finetune.model_copy(update={"sequence_length": length})
    task = _complete_task(config)
    found |= {
        "task": task,
        "model": found["model"].model_copy(
            update={
                "num_labels": task.num_labels,
                "classifies": task.classifies,
                "adapter": config.finetune.adapter,
                "train_layers": config.finetune.train_layers,
            }
        ),
    }
    family = FAMILIES.get(found["model"].family)
    if family.complete is not None:
        found["model"] = family.complete(found["model"], from_seed=False)
        _refuse_issues(family.run_issues(config, found["model"]))
    _refuse_issues(base_issues(config, found["model"]))
    if found["model"].vocab_size == AUTO:
        found["model"] = _with_vocabulary(
            found["model"], tokenizer_vocabulary(tokenizer_path(config) or found["tokenizer"].path)
        )
    return _with_length(config.model_copy(update={**found, "finetune": finetune}))


def _refuse_issues(issues: Iterable[tuple[str, Any, str, str]]) -> None:
    if wrong := list(issues):
        raise ConfigError("\n".join(f"{field}: {_shown(value)}{rule}. {fix}" for field, value, rule, fix in wrong))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value}: "


def _with_length(config: FinetuneConfig) -> FinetuneConfig:
    """The same run with training.epochs as training.tokens, padding counted like everywhere: whatever the batch size
    becomes on a resume, the run ends with the row that completes the last pass."""
    if config.training.epochs is None:
        return config
    rows = len(example_set(config, tokenizer_path(config)).rows)
    tokens = math.ceil(config.training.epochs * rows) * config.sequence_length
    training = config.training.model_copy(update={"epochs": None, "tokens": tokens})
    return config.model_copy(update={"training": training})
