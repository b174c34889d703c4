"""Of the preflight, where a fine-tuning starts: the base's weights, and the tokenizer that goes with them."""

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.planning.resolve import run_folder, tokenizer_path
from launcher.preflight.finding import Finding
from megatrain.base.errors import ExitCode, MegatrainError
from megatrain.checkpoint.state import read_state
from megatrain.config import AUTO, FinetuneConfig
from megatrain.config.rules import task_issues
from megatrain.data.folder.manifest import TOKENIZER
from megatrain.data.text.tokenizer_files import pad_token, read_tokenizer, tokenizer_file
from megatrain.data.text.vocabulary import Vocabulary, parse_vocabulary
from megatrain.huggingface.base_model import find_base, read_base
from megatrain.huggingface.config_json import is_pretrained
from megatrain.huggingface.names import drawn, wholes_of_base
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES
from megatrain.run.directory import RunDir
from megatrain.run.inputs import base_run, load_run

_SHOWN = 3  # tokens


def check_base(config: FinetuneConfig) -> Iterator[Finding]:
    """A run with checkpoints of all weights needs its base no more; its tokenizer must fit the model in any case."""
    begun = bool(run_folder(config).steps())
    if not begun:
        yield from _weights(config)
    elif config.finetune.adapter is not None or config.finetune.train_layers is not None:
        yield from _frozen_weights(config)
    if config.model is not None:
        for field, value, rule, fix in task_issues(config, config.model):
            yield Finding("error", f"{field}: {value}: {rule}. {fix}", ExitCode.USAGE)
        yield from _export(config.model)
    path = tokenizer_path(config)
    if path is None:
        return  # reported elsewhere
    try:
        files = read_tokenizer(path)
        vocabulary = parse_vocabulary(files[TOKENIZER], path)
        pad = pad_token(files)
    except MegatrainError as error:
        yield Finding("error", f"tokenizer.path: {error}", error.exit_code)
        return
    yield from _beyond(config, vocabulary, path, pad)
    if not begun:
        yield from _bases_tokenizer(config, vocabulary, path)


def _export(model: ModelSection) -> Iterator[Finding]:
    """What `megatrain export` will refuse is better known before training."""
    config_json = FAMILIES.get(model.family).huggingface_config
    if model.num_labels is None or model.vocab_size == AUTO or config_json is None:
        return
    try:
        config_json(model.merged)
    except MegatrainError as error:
        yield Finding("warning", f"{error}; megatrain evaluates and predicts with it")


def _weights(config: FinetuneConfig) -> Iterator[Finding]:
    base, folder = base_run(config.finetune.base), Path(config.finetune.base)
    if not is_pretrained(folder):
        if not base.steps():
            yield Finding("error", f"finetune.base: {base} has no checkpoint yet.", ExitCode.CHECKPOINT)
        yield from _is_language_model(config)
        yield from _is_merged(config)
        if config.finetune.adapter is not None or config.finetune.train_layers is not None:
            yield from _can_be_told(base)
        return
    try:
        if config.model is not None:
            model = config.model.merged
            files = weight_files(folder, model)
            if absent := drawn(files, wholes_of_base(model), model):
                text = f"{folder}: has no head; drawn from run.seed: {', '.join(absent)}"
                yield Finding("note", f"finetune.base: {text}")
                if config.model.adapter is not None and config.model.num_labels is None:
                    text = f"{folder}: has no head, and finetune.adapter trains none: it would stay as it is drawn"
                    fix = "Leave finetune.adapter out, or name a base with a head."
                    yield Finding("error", f"finetune.base: {text}. {fix}", ExitCode.USAGE)
        read_base(config.finetune.base)
    except MegatrainError as error:
        yield Finding("error", f"finetune.base: {error}", error.exit_code)


def _frozen_weights(config: FinetuneConfig) -> Iterator[Finding]:
    """Checkpoints of a part of the weights need the base that has the others."""
    run = run_folder(config)
    folder = run.step(run.steps()[-1])
    try:
        if (base := read_state(folder).base) is not None:
            find_base(folder, base.path, base.sha256, (config.finetune.base,))
    except MegatrainError as error:
        yield Finding("error", f"finetune.base: {error}", error.exit_code)


def _can_be_told(base: RunDir) -> Iterator[Finding]:
    """Checkpoints of a part of the weights need the base's, which its run would delete one day."""
    folder = base.references if base.references.is_dir() else base.path
    if folder.is_dir() and not os.access(folder, os.W_OK):
        text = f"{base}: cannot be written, so that it cannot be told to keep the checkpoint that this run refers to"
        fix = "Keep it: raise its checkpoint.keep_last, or name a copy of the checkpoint."
        yield Finding("warning", f"finetune.base: {text}. {fix}")


def _is_merged(config: FinetuneConfig) -> Iterator[Finding]:
    """Adapters that no weight can hold would be lost."""
    try:
        model = load_run(base_run(config.finetune.base)).model
    except MegatrainError:
        return  # reported elsewhere
    if model is not None and model.adapter is not None and model.has_lasting_adapter:
        text = f"has {model.adapter.name} adapters, which cannot be merged into its weights"
        fix = "Name the base of that run."
        yield Finding("error", f"finetune.base: {config.finetune.base}: {text}. {fix}", ExitCode.USAGE)


def _is_language_model(config: FinetuneConfig) -> Iterator[Finding]:
    """A classifier has no head that a language model could go on with."""
    try:
        task = load_run(base_run(config.finetune.base)).task
    except MegatrainError:
        return  # reported elsewhere
    if task.classes and not config.task.classes:
        text = f"is a classifier (task.name: {task.name}), and task.name: {config.task.name} needs a language model"
        fix = "Name the run that it was fine-tuned from, or a task that trains a classifier."
        yield Finding("error", f"finetune.base: {config.finetune.base}: {text}. {fix}", ExitCode.USAGE)


def _beyond(config: FinetuneConfig, vocabulary: Vocabulary, path: str, pad: str | None) -> Iterator[Finding]:
    """An id without a row in the embedding would end the first step; padding is done with another id."""
    if config.model is None or config.model.vocab_size == AUTO:
        return
    beyond = {token: number for token, number in vocabulary.beyond(config.model.vocab_size).items() if token != pad}
    if beyond:
        shown = ", ".join(f"{token!r} ({number})" for token, number in list(beyond.items())[:_SHOWN])
        more = f" and {len(beyond) - _SHOWN:,} more" if len(beyond) > _SHOWN else ""
        yield Finding(
            "error",
            f"tokenizer.path: {path}: its tokens {shown}{more} lie beyond the model's embedding of "
            f"{config.model.vocab_size:,} rows (model.vocab_size). Name the tokenizer that the base was trained with.",
            ExitCode.DATA,
        )


def _bases_tokenizer(config: FinetuneConfig, vocabulary: Vocabulary, path: str) -> Iterator[Finding]:
    """Other ids for the same text would make noise of what the base has learnt."""
    theirs = _tokenizer_of_base(config.finetune.base)
    if theirs is None or theirs == path:
        return
    try:
        before = parse_vocabulary(read_tokenizer(theirs)[TOKENIZER], theirs)
    except MegatrainError as error:
        yield Finding("warning", f"tokenizer.path: {path}: cannot be compared with the base's ({error})")
        return
    if before.sha256 == vocabulary.sha256:
        return
    if vocabulary.extends(before):
        added = len(vocabulary.ids) - len(before.ids)
        if added:
            text = f"adds {added} tokens to the base's ({theirs}), of which the base has learnt nothing."
            yield Finding("warning", f"tokenizer.path: {path}: {text}")
        return
    yield Finding(
        "error",
        f"tokenizer.path: {path}: is not the tokenizer that {config.finetune.base} was trained with ({theirs}): it "
        "gives text other ids. Leave tokenizer.path out, or name one that only adds tokens to it.",
        ExitCode.DATA,
    )


def _tokenizer_of_base(base: str) -> str | None:
    if is_pretrained(Path(base)):
        return base if tokenizer_file(base).exists() else None
    try:
        tokenizer = load_run(base_run(base)).tokenizer
    except MegatrainError:
        return None  # reported elsewhere
    return tokenizer.path if tokenizer is not None else None
