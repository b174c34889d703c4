"""What a configuration takes from other files: the vocabulary from the data, a fine-tuning's model from its base."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from launcher.planning.precision import with_precision
from megatrain import config_file
from megatrain.config import AUTO, Config, FinetuneConfig, ModelSection, PretrainConfig, TokenizerSection
from megatrain.data.folder.manifest import read_manifest
from megatrain.errors import ConfigError, DataError
from megatrain.model.config_json import is_pretrained, read_pretrained
from megatrain.run_dir import RunDir, parse_step

LONGEST_BY_DEFAULT = 4096  # tokens, where a pretrained model could take more
SHORTEST_EXAMPLE = 2  # tokens
VOCABULARY_MULTIPLE = 128  # so that it divides over tensor-parallel ranks, and fills matmul tiles


def resolve_inputs(config: Config) -> Config:
    """The same run with its model and precision complete: no `auto` vocabulary, and in a fine-tuning the base's model
    and tokenizer.

    Raises:
        ConfigError, DataError: a file that holds the answer is absent or unreadable.
    """
    config = with_precision(config)
    if isinstance(config, FinetuneConfig):
        return _with_base(config)
    if config.model.vocab_size != AUTO:
        return config
    return config.model_copy(update={"model": _with_vocabulary(config.model, _vocabulary(config))})


def base_run(base: str) -> RunDir:
    """The run that `finetune.base` names, directly or by one of its checkpoints."""
    path = Path(base)
    return RunDir(path.parent.parent if parse_step(path) is not None else path)


def tokenizer_vocabulary(path: str) -> int:
    """Ids in a tokenizer.json: the largest, plus one.

    Raises:
        DataError: the file is absent, or is no tokenizer.
    """
    file = tokenizer_file(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        ids = [token["id"] for token in data.get("added_tokens", [])]
        vocabulary = data["model"]["vocab"]
        # BPE and WordPiece map a token to its id; Unigram lists tokens in the order of their ids
        ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return int(max(ids)) + 1
    except OSError as error:
        raise DataError(
            f"tokenizer.path: {file}: cannot be read: {error.strerror}. Make it with `megatrain data tokenizer train`; "
            "to plan without one, give a number such as model.vocab_size=32768."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"tokenizer.path: {file}: is not a tokenizer.json as Hugging Face tokenizers write it"
        ) from None


def tokenizer_file(path: str) -> Path:
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)


def _vocabulary(config: PretrainConfig) -> int:
    first = config.data.train[0].path
    if config.tokenizer is None or (Path(first).exists() and not config.data.sequential):
        return read_manifest(first).vocab_size
    return tokenizer_vocabulary(config.tokenizer.path)


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
        config = config_file.load(run.config)
        return _Base(config.model, config.tokenizer, config.sequence_length)
    if is_pretrained(Path(given)):
        model, longest = read_pretrained(Path(given))
        tokenizer = TokenizerSection(path=given) if tokenizer_file(given).is_file() else None
        return _Base(model, tokenizer, min(longest, LONGEST_BY_DEFAULT))
    raise ConfigError(
        f"finetune.base: {given!r}: is not a run ({run.config} is missing), and not a model in Hugging Face's format. "
        "Give the folder of a megatrain run, one of its checkpoints, or a folder with config.json and safetensors."
    )


def _with_base(config: FinetuneConfig) -> FinetuneConfig:
    base = _base(config.finetune.base)
    found: dict[str, Any] = {"model": config.model or base.model, "tokenizer": config.tokenizer or base.tokenizer}
    if found["tokenizer"] is None:
        raise ConfigError(
            "tokenizer: the base run names none; add `tokenizer: {path: …}`, the one its data was made with."
        )
    length = config.finetune.sequence_length or base.sequence_length
    if length < SHORTEST_EXAMPLE:
        raise ConfigError(
            f"finetune.sequence_length: {length}: must be at least {SHORTEST_EXAMPLE}, a token and what follows it."
        )
    finetune = config.finetune.model_copy(update={"sequence_length": length})
    if found["model"].vocab_size == AUTO:
        found["model"] = _with_vocabulary(found["model"], tokenizer_vocabulary(found["tokenizer"].path))
    return config.model_copy(update={**found, "finetune": finetune})
