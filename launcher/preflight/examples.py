"""The part of the preflight that reads a fine-tuning's examples: all of them, as the ranks will."""

from collections.abc import Iterator

from launcher.planning.examples import example_set
from launcher.planning.resolve import base_positions, run_folder, tokenizer_path
from launcher.preflight.duplicates import check_duplicates
from launcher.preflight.finding import Finding
from launcher.preflight.same_data import check_same_files
from megatrain.base.errors import DataError, ExitCode, MegatrainError
from megatrain.base.registry import load_object
from megatrain.checkpoint.progress import saved_progress
from megatrain.config import AUTO, FinetuneConfig
from megatrain.config.validation_sets import field_of_set
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_set import MANY_EPOCHS, ExampleSet
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.registry import TASKS

_TRAIN = "finetune.train"


def check_examples(config: FinetuneConfig, *, tokenizer_told: bool = False) -> Iterator[Finding]:
    """Whether every example can be learnt from, how many are cut, and how often they are read.

    Without a model and a tokenizer, of which other findings tell, only the shape of the rows.

    Args:
        tokenizer_told: another finding says that the tokenizer is unfit.
    """
    tokenizer = tokenizer_path(config)
    problem = _tokenizer_problem(tokenizer)
    if problem is not None and tokenizer is not None and not tokenizer_told:
        yield Finding("error", f"tokenizer.path: {problem}", problem.exit_code)
    complete = problem is None and config.finetune.sequence_length is not None
    complete = complete and config.model is not None and config.model.vocab_size != AUTO
    sets: dict[str, ExampleSet] = {}
    parts = _parts(config)
    for part, paths in parts.items():
        try:
            if not complete:
                load_object(TASKS.get(config.task.name).check_rows)(paths, config.task)
                continue
            found = sets[part] = example_set(config, tokenizer, part, paths)
        except MegatrainError as error:
            prefix = "" if str(error).startswith("finetune.") else f"{part}: "
            yield from (Finding("error", f"{prefix}{line}", error.exit_code) for line in str(error).splitlines())
            continue
        yield from (Finding("note", f"{part}: {text}") for text in found.notes())
        yield from (Finding("warning", f"{part}: {text}") for text in found.warnings())
        if part == _TRAIN:
            yield from _epochs(config, found)
    for part, paths in parts.items():
        if part == _TRAIN:
            continue
        same_files = list(check_same_files(_files(config.finetune.train), _files(paths), part))
        yield from same_files
        if _TRAIN in sets and part in sets and not same_files:
            yield from check_duplicates(sets[_TRAIN], sets[part], part)
    yield from _positions(config)


def _parts(config: FinetuneConfig) -> dict[str, tuple[str, ...]]:
    """Files by the field that names them."""
    sets = config.finetune.validation_sets
    return {_TRAIN: config.finetune.train} | {field_of_set("finetune", name): paths for name, paths in sets.items()}


def _tokenizer_problem(path: str | None) -> MegatrainError | None:
    if path is None:
        return DataError("is not known")
    try:
        Tokenizer.load(path)
        ChatTemplate.load(path)
    except MegatrainError as error:
        return error
    return None


def _epochs(config: FinetuneConfig, examples: ExampleSet) -> Iterator[Finding]:
    progress, most = saved_progress(run_folder(config)), config.finetune.max_epochs
    epochs = examples.epochs(config, progress)
    if epochs < MANY_EPOCHS and epochs <= most:
        return
    text = f"finetune.train: {examples.describe(config, progress)}"
    if epochs > most:
        yield Finding(
            "error",
            f"{text}, more than finetune.max_epochs ({most:g}). Give training.epochs, add examples, or raise the "
            "limit.",
            ExitCode.DATA,
        )
    else:
        yield Finding("warning", f"{text}: it may learn them by heart. Give training.epochs.")


def _files(paths: tuple[str, ...]) -> list[str]:
    """What folders and globs stand for; nothing where a path stands for nothing, of which other findings tell."""
    try:
        return [str(given) for given in find_inputs(paths).inputs]
    except MegatrainError:
        return []


def _positions(config: FinetuneConfig) -> Iterator[Finding]:
    length, known = config.finetune.sequence_length, base_positions(config.finetune.base)
    if length is not None and known is not None and length > known:
        yield Finding(
            "warning",
            f"finetune.sequence_length: {length:,}: the base was trained on sequences of {known:,}; it has to learn "
            "what lies beyond. Make it shorter, if the examples are.",
        )
