"""The part of the preflight that reads what lies on disk: prepared data, tokenizer, the checkpoint to resume from."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from launcher.planning.examples import example_set
from launcher.planning.resolve import tokenizer_path
from launcher.preflight.finding import Finding
from megatrain.base.errors import ConfigError, DataError, ExitCode, MegatrainError
from megatrain.base.registry import load_object
from megatrain.checkpoint.manifest import read_manifest as read_checkpoint_manifest
from megatrain.checkpoint.state import read_state
from megatrain.config import AUTO, Config, FinetuneConfig, ModelSection, PretrainConfig
from megatrain.data.examples.identity import check_same_examples, identity
from megatrain.data.folder.index import read_index
from megatrain.data.folder.manifest import SHORT_HASH_DIGITS, TOKENIZER, Manifest, read_manifest
from megatrain.data.folder.storage import check_shards
from megatrain.data.text.tokenizer_files import padding, read_tokenizer, tokenizer_sha256
from megatrain.data.text.vocabulary import parse_vocabulary
from megatrain.run.directory import RunDir, parse_resume
from megatrain.tasks.registry import TASKS, TaskSection


def check_files(field: str, path: str, manifest: Manifest) -> Iterator[Finding]:
    """The index by its hash and what it says, the shards by their sizes. `megatrain data verify` reads every byte."""
    folder = Path(path)
    if folder.is_file():
        folder = folder.parent
    checks = partial(read_index, folder, manifest), partial(check_shards, folder, manifest.shards)
    for check in checks:
        try:
            check()
        except DataError as error:
            yield _data(f"{field}: {error}")


def check_tokenizer(path: str, expected_sha256: str) -> Iterator[Finding]:
    """The tokenizer that the run names must be the one that its data was made with."""
    try:
        if tokenizer_sha256(path) == expected_sha256:
            return
    except MegatrainError as error:
        yield Finding("error", f"tokenizer.path: {error}", error.exit_code)
        return
    yield _data(
        f"tokenizer.path: {path}: is not the tokenizer that the data was prepared with (SHA-256 differs). "
        "Name that one, or prepare the data again."
    )


def check_vocabulary(path: str, model: ModelSection) -> Iterator[Finding]:
    """Every id of the tokenizer must have a row in the model's embedding."""
    try:
        size = parse_vocabulary(read_tokenizer(path)[TOKENIZER], path).size
    except MegatrainError as error:
        yield Finding("error", f"tokenizer.path: {error}", error.exit_code)
        return
    if model.vocab_size != AUTO and size > model.vocab_size:
        text = f"{path}: has ids up to {size - 1:,}; model.vocab_size is {model.vocab_size:,}. Set that to auto."
        yield Finding("error", f"tokenizer.path: {text}", ExitCode.DATA)


def check_task_tokenizer(task: TaskSection, path: str) -> Iterator[Finding]:
    """What the task needs of a tokenizer that can be read: a mask token, or the like."""
    check = TASKS.get(task.name).check_tokenizer
    if not check:
        return
    try:
        load_object(check)(task, path)
    except ConfigError as error:
        yield Finding("error", str(error), error.exit_code)
    except MegatrainError:
        return  # reported by `check_tokenizer`


def check_padding(config: Config, origin: RunDir) -> Iterator[Finding]:
    """The tokenizer of a pretraining must pad with the id that the model needs.

    Args:
        origin: whose checkpoints it goes on from; where there are some, neither can change any more.
    """
    path = tokenizer_path(config)
    if not isinstance(config, PretrainConfig) or config.model.padding_id is None or path is None:
        return
    wanted = config.model.padding_id
    try:
        token, number = padding(path)
    except MegatrainError:
        return  # reported by `check_tokenizer`
    if number == wanted:
        return
    text = (
        f"model.position_offset: {wanted + 1}: positions of a RoBERTa begin behind the id of padding, in transformers, "
        f"and {path} pads with {token!r}, id {number}: this would not be exported."
    )
    if origin.steps():
        yield Finding("warning", text)
    else:
        fix = f"Set it to {number + 1}, or to 0 and leave model_type out, for a BERT."
        yield Finding("error", f"{text} {fix}", ExitCode.USAGE)


def check_checkpoint(config: Config, run: RunDir, resume: str) -> Iterator[Finding]:
    """Whether the checkpoint that this attempt would resume from fits: same model, same data in the same order.

    Its layout does not matter: any layout reads it. Its bytes are verified when it is loaded.
    """
    try:
        wanted, steps = parse_resume(resume), run.steps()
    except MegatrainError:
        return  # reported elsewhere
    if isinstance(wanted, int):
        steps = [step for step in steps if step == wanted]
    if wanted == "never" or not steps:
        return
    folder = run.step(steps[-1])
    try:
        read_checkpoint_manifest(folder)
        state = read_state(folder)
    except MegatrainError as error:
        older = len(steps) > 1
        yield Finding("warning" if older else "error", f"{error}", ExitCode.CHECKPOINT)
        return
    yield from _model_differences(config, folder, state.model)
    if isinstance(config, PretrainConfig):
        yield from _data_differences(config, folder, state.loader_state())
    else:
        yield from _example_differences(config, folder, state.loader_state())


def _model_differences(config: Config, folder: Path, saved: ModelSection) -> Iterator[Finding]:
    if config.model is None:
        return
    for name in type(config.model).model_fields:
        then, now = getattr(saved, name, None), getattr(config.model, name)
        if then != now and now != AUTO:
            text = f"model.{name}: {now}: {folder} was saved with {then}. Undo the change, or give another run.name."
            yield Finding("error", text, ExitCode.CHECKPOINT)


def _data_differences(config: PretrainConfig, folder: Path, loader: dict[str, Any]) -> Iterator[Finding]:
    """The loader refuses a position of other data; here it is said before a GPU is held."""
    if not isinstance(loader.get("sources"), list) or config.data.phases:
        return  # of a curriculum some sources may change; the loader knows which
    try:
        now = [read_manifest(source.path).manifest_hash[:SHORT_HASH_DIGITS] for source in config.data.train]
    except DataError:
        return  # reported elsewhere
    if now != loader["sources"]:
        yield _data(
            f"data.train: is not the data that {folder} was trained on: its position would mean other samples. "
            "Restore the data, or give another run.name."
        )


def _example_differences(config: FinetuneConfig, folder: Path, loader: dict[str, Any]) -> Iterator[Finding]:
    try:
        check_same_examples(loader, identity(example_set(config, tokenizer_path(config)).rows, config.run.seed))
    except DataError as error:
        if not str(error).startswith("finetune.train"):  # else it is reported elsewhere
            yield _data(f"finetune.train: {folder}: {error}")
    except (MegatrainError, ValueError):
        return  # reported elsewhere: the model, the tokenizer or the length is unknown


def _data(text: str) -> Finding:
    return Finding("error", text, ExitCode.DATA)
