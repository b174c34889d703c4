"""The examples of a fine-tuning, read and packed once for all who ask: the length of the run, the checks, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatrain.base.errors import ConfigError, DataError
from megatrain.base.registry import load_object
from megatrain.config import FinetuneConfig
from megatrain.tasks.registry import TASKS

if TYPE_CHECKING:  # numpy and tokenizers take a while: only for those who need them
    from megatrain.data.examples.example_set import ExampleSet
    from megatrain.data.text.inputs import Input

_CACHED = 8
_cache: dict[Any, ExampleSet | DataError] = {}


def example_set(
    config: FinetuneConfig, tokenizer_path: str | None, part: str = "finetune.train", paths: Sequence[str] | None = None
) -> ExampleSet:
    """The packed examples of finetune.train, or of other files.

    Args:
        config: its model and sequence length are known.
        tokenizer_path: where the run's tokenizer is; see `inputs.tokenizer_path`.
        part: the field that names the files, for messages.
        paths: default: those of finetune.train.

    Raises:
        DataError: names the field, and file and line of each example that is unusable, up to a limit.
        ConfigError: a sequence has no room for an example.
    """
    from megatrain.data.examples.chat_template import ChatTemplate
    from megatrain.data.text.inputs import find_inputs
    from megatrain.data.text.tokenizer import Tokenizer

    if tokenizer_path is None or config.model is None:
        raise ConfigError("finetune.base: model and tokenizer are not known yet")
    paths = config.finetune.train if paths is None else paths
    tokenizer, template = Tokenizer.load(tokenizer_path), ChatTemplate.load(tokenizer_path)
    read_examples = load_object(TASKS.get(config.task.name).read_examples)
    prefix = f"{part}: "
    try:
        ids = tokenizer.sha256, tokenizer.eos_id, tokenizer.pad_id, template.source if template else None
        key = (
            repr(config.task),
            config.sequence_length,
            ids,
            config.model.model_dump_json(),
            part,
            *map(_stamp, find_inputs(paths).inputs),
        )
    except DataError as error:
        raise _prefixed(error, prefix) from None
    if key not in _cache:
        while len(_cache) >= _CACHED:
            del _cache[next(iter(_cache))]
        try:
            _cache[key] = read_examples(
                paths,
                tokenizer,
                config.task,
                template=template,
                sequence_length=config.sequence_length,
                model=config.model,
            )
        except DataError as error:
            _cache[key] = _prefixed(error, prefix)
    found = _cache[key]
    if isinstance(found, DataError):
        raise found
    return found


def _prefixed(error: DataError, prefix: str) -> DataError:
    return DataError("\n".join(f"{prefix}{line}" for line in str(error).splitlines()))


def _stamp(given: Input) -> tuple[str, int, int, int]:
    try:
        found = Path(str(given)).stat()
    except OSError:
        return str(given), 0, 0, 0  # a dataset of the Hub, or a file that reading will tell of
    return str(given), found.st_size, found.st_mtime_ns, found.st_ino
