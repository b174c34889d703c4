"""config.json of a model in Hugging Face's format: read without trust, and written. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import read_model
from megatrain.config import ParallelSection
from megatrain.config.rules import validate_model
from megatrain.model.architecture import ModelSection
from megatrain.model.family import ANY_MODEL_TYPE, FAMILIES
from megatrain.model.huggingface_config import CONFIG_LIMIT, Part

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

_Ids = int | list[int] | None


class _Any(Part):
    """What any model type has."""

    model_type: Any = None
    quantization_config: Any = None
    compression_config: Any = None  # its name in older compressed-tensors
    bos_token_id: _Ids = None  # of these only the form is looked at: they are kept for the export
    eos_token_id: _Ids = None
    pad_token_id: _Ids = None


def is_pretrained(path: Path) -> bool:
    """Whether the folder is a model in Hugging Face's format."""
    return (path / CONFIG).exists()


def read_pretrained(path: Path) -> tuple[ModelSection, int]:
    """The model of a folder in Hugging Face's format, and the longest sequence that it was made for, in tokens.

    Raises:
        ConfigError: its config.json is of another model type, or has what this architecture has not; says what.
    """
    file = path / CONFIG
    found = read_model(file, _Any, error=ConfigError, limit=CONFIG_LIMIT)
    readers = {name: family.read_huggingface_config for _, family in FAMILIES for name in family.model_types}
    name = found.model_type
    reader = readers.get(name, readers.get(ANY_MODEL_TYPE)) if isinstance(name, str) else None
    if reader is None:
        text = f"is {name!r:.60}; megatrain reads {', '.join(map(repr, readers))}. Take a model of these."
        raise ConfigError(f"{file}: model_type: {text}")
    _refuse_quantized(found, file)
    section, longest = reader(file, name)
    for problem in validate_model(section, ParallelSection()):
        raise ConfigError(f"{file}: {problem.field.removeprefix('model.')}: {problem.value}: {problem.rule}")
    return section, longest


def _refuse_quantized(found: _Any, file: Path) -> None:
    quantized = found.quantization_config or found.compression_config
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        named = f" ({method:.60})" if isinstance(method, str) else ""
        raise ConfigError(
            f"{file}: quantization_config: the weights are quantized{named}, and are not read without "
            "their scales. Take the model in bfloat16, or save it so with transformers, after `model.dequantize()`."
        )


def config_json(
    config: ModelSection,
    *,
    max_position_embeddings: int,
    dtype: str = "float32",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    labels: Sequence[str] = (),
    problem_type: str | None = "single_label_classification",
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        max_position_embeddings: the sequence length of training, in tokens.
        dtype: of the tensors beside it, such as "bfloat16".
        labels: of a classifier, in the order of its logits.
        problem_type: of a classifier of sequences, as `transformers` calls it.

    Raises:
        ConfigError: the family has no counterpart in `transformers`.
    """
    family = FAMILIES.get(config.family)
    if family.huggingface_config is None:
        raise ConfigError(f"model.family: {config.family}: has no counterpart in transformers, and is not exported")
    classes: dict[str, Any] = {}
    if config.num_labels is not None:
        names = list(labels) or [f"LABEL_{number}" for number in range(config.num_labels)]
        classes = {
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }
        if config.classifies == "sequence":
            classes["problem_type"] = problem_type
    return {
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": max_position_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        # of encoders; null, where transformers would take a vocabulary's of its own for them
        **({} if config.is_causal else {"cls_token_id": None, "sep_token_id": None}),
        **classes,
        **family.huggingface_config(config),  # where positions are learned, it says how many
    }
