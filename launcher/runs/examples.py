"""The packed examples of a fine-tuning, in its run's folder: what the preflight has encoded, for the ranks to map."""

from contextlib import suppress

from launcher.planning.examples import example_set
from launcher.planning.resolve import tokenizer_path
from megatrain.base.errors import MegatrainError
from megatrain.config import FinetuneConfig
from megatrain.config.validation_sets import field_of_set
from megatrain.data.examples.cache import fingerprint, open_examples, remove_others, write_examples
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.run.directory import RunDir


def keep_examples(run: RunDir, config: FinetuneConfig) -> None:
    """Where the examples cannot be read, nothing is kept: the preflight tells of it, or the ranks do.

    Args:
        config: resolved.

    Raises:
        OSError: the folder cannot be written.
    """
    tokenizer = tokenizer_path(config)
    if tokenizer is None or config.model is None or config.finetune.sequence_length is None:
        return
    sets = {"finetune.train": config.finetune.train} | {
        field_of_set("finetune", name): paths for name, paths in config.finetune.validation_sets.items()
    }
    kept = set()
    with suppress(MegatrainError):
        for part, paths in sets.items():
            name = fingerprint(
                paths,
                Tokenizer.load(tokenizer),
                config.task,
                template=ChatTemplate.load(tokenizer),
                sequence_length=config.finetune.sequence_length,
                model=config.model,
            )
            if name is None:
                continue
            if open_examples(run.examples / name) is None:
                write_examples(run.examples / name, example_set(config, tokenizer, part, paths))
            kept.add(name)
    remove_others(run.examples, kept)
