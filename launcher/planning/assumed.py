"""What `megatrain plan` takes for granted while files that decide it are not there yet; each is said in the answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.planning.resolve import run_folder
from megatrain.base.errors import DataError, MegatrainError
from megatrain.config import AUTO, Config, FinetuneConfig, ModelSection, PretrainConfig, TokenizerSection
from megatrain.config.file import load_config
from megatrain.data.folder.locations import is_remote
from megatrain.data.text.inputs import find_inputs
from megatrain.run.inputs import base_run

VOCABULARY = 32_768
_VOCABULARY_SENTENCE = (
    f"a vocabulary of {VOCABULARY:,}: neither the tokenizer nor the data is there yet (model.vocab_size=N)"
)


_LABELS, _STEPS = ("first", "second"), 1000


def assume(config: Config, file: Path) -> tuple[Config, list[str]]:
    """A run that can be planned before its data, tokenizer or base are made, and a sentence for each thing assumed.

    What is there and cannot be read is an error all the same; see `inputs.complete_model`.

    Args:
        file: of the configuration; a fine-tuning's base may be the run of another file beside it.
    """
    if isinstance(config, FinetuneConfig):
        config, of_examples = _examples(config)
        config, said = _finetune(config, file)
        return config, [*said, *of_examples]
    model, said = _model(config)
    return config.model_copy(update={"model": model}), said


def _model(config: PretrainConfig) -> tuple[ModelSection, list[str]]:
    if config.model.vocab_size != AUTO or config.model.names_vocabulary or _vocabulary_is_there(config):
        return config.model, []
    return config.model.model_copy(update={"vocab_size": VOCABULARY}), [_VOCABULARY_SENTENCE]


def _examples(config: FinetuneConfig) -> tuple[FinetuneConfig, list[str]]:
    """What would be found in examples that are not there: labels of a classifier, steps of an epoch."""
    try:
        find_inputs(config.finetune.train)
        return config, []
    except DataError:
        pass
    update: dict[str, Any] = {}
    said = []
    if getattr(config.task, "labels", ()) is None and config.task.num_labels is None:
        update["task"] = config.task.model_copy(update={"labels": _LABELS})
        said.append("two labels: the files of finetune.train are not there yet (task.labels=[…])")
    if config.training.epochs is not None:
        update["training"] = config.training.model_copy(update={"epochs": None, "steps": _STEPS})
        said.append(f"{_STEPS:,} steps: the files of finetune.train are not there yet (training.steps=N)")
    return config.model_copy(update=update), said


def _finetune(config: FinetuneConfig, file: Path) -> tuple[Config, list[str]]:
    if Path(config.finetune.base).exists() or run_folder(config).config.is_file():
        return config, []
    wanted = base_run(config.finetune.base).path
    described = [(path, base) for path, base in _pretraining_runs(file.parent) if run_folder(base).path == wanted]
    if not described:
        return config, []  # nothing to go by: that there is no base is the answer
    path, base = described[0]
    model, said = _model(base)
    length = config.finetune.sequence_length or base.sequence_length
    known = {
        "model": config.model or model,
        "tokenizer": config.tokenizer or base.tokenizer or TokenizerSection(path="tokenizer.json"),
        "finetune": config.finetune.model_copy(update={"sequence_length": length}),
    }
    sentence = f"the model of {path}, whose run {config.finetune.base} is not there yet"
    return config.model_copy(update=known), [sentence, *said]


def _pretraining_runs(folder: Path) -> Iterator[tuple[Path, PretrainConfig]]:
    for path in sorted(folder.glob("*.yaml")):
        try:
            config = load_config(path)
        except MegatrainError:
            continue  # another kind of file, or one with mistakes, which it is not asked about
        if isinstance(config, PretrainConfig):
            yield path, config


def _vocabulary_is_there(config: PretrainConfig) -> bool:
    tokenizer = config.tokenizer is not None and Path(config.tokenizer.path).exists()
    data = config.data.train[0].path
    return tokenizer or is_remote(data) or Path(data).exists()
