"""config.json of a model in Hugging Face's format: read without trust, and written. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.config import ParallelSection
from megatrain.config.rules import validate_model
from megatrain.huggingface.model_types import LONGEST, MODEL_TYPES, ModelType, Part, Window, check_window
from megatrain.model.architecture import FAMILIES, ModelSection
from megatrain.model.families.llama.huggingface import SCALED
from megatrain.model.families.llama.section import LlamaSection, RopeScaling

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
CONFIG_LIMIT = 8 << 20  # bytes; such files have a few KiB

_MOST_LAYERS = 100_000
_WIDEST = 1 << 24  # of any dimension of a tensor

_Layers = Annotated[int, Field(ge=1, le=_MOST_LAYERS)]
_Width = Annotated[int, Field(ge=1, le=_WIDEST)]
_Ids = int | list[int] | None
_SAME_NAME = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)


class _Rope(Part):
    rope_type: str | None = None
    type: str | None = None  # its name in older files
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0


class ConfigJson(Part):
    """What config.json says of the weights; defaults are those of every model type in MODEL_TYPES."""

    num_hidden_layers: _Layers
    hidden_size: _Width
    num_attention_heads: _Width
    num_key_value_heads: _Width | None = None
    head_dim: _Width | None = None
    intermediate_size: _Width
    vocab_size: _Width
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: Annotated[int, Field(ge=1, le=LONGEST)]
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    bos_token_id: _Ids = None  # of these only the form is looked at: they are kept for the export
    eos_token_id: _Ids = None
    pad_token_id: _Ids = None


class _Family(Part):
    """What decides whether this is an architecture that megatrain has."""

    model_type: Any = None
    hidden_act: Any = "silu"
    attention_bias: Any = None
    mlp_bias: Any = None
    quantization_config: Any = None
    compression_config: Any = None  # its name in older compressed-tensors


def is_pretrained(path: Path) -> bool:
    """Whether the folder is a model in Hugging Face's format."""
    return (path / CONFIG).exists()


def read_pretrained(path: Path) -> tuple[ModelSection, int]:
    """The model of a folder in Hugging Face's format, and the longest sequence that it was made for, in tokens.

    Raises:
        ConfigError: its config.json is of another model type, or has what this architecture has not; says what.
    """
    file = path / CONFIG
    kind = _model_type(read_model(file, _Family, error=ConfigError, limit=CONFIG_LIMIT), file)
    content = read_model(file, ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    if kind.always_slides is not None:
        check_window(read_model(file, Window, error=ConfigError, limit=CONFIG_LIMIT), kind, file)
    values = {name: getattr(content, name) for name in _SAME_NAME}
    values |= {name: value for name, value in kind.defaults.items() if name not in content.model_fields_set}
    values |= {"attention_bias": kind.attention_bias, "qk_norm": kind.qk_norm}
    values |= {"rope_theta": _theta(content, file), "rope_scaling": _scaling(content, file)}
    section = parse_model(LlamaSection, values, file, ConfigError)
    for problem in validate_model(section, ParallelSection()):
        raise ConfigError(f"{file}: {problem.field.removeprefix('model.')}: {problem.value}: {problem.rule}")
    return section, content.max_position_embeddings


def _model_type(found: _Family, file: Path) -> ModelType:
    kind = MODEL_TYPES.get(found.model_type) if isinstance(found.model_type, str) else None
    if kind is None:
        text = (
            f"is {found.model_type!r:.60}; megatrain reads {', '.join(map(repr, MODEL_TYPES))}. Take a model of these."
        )
        raise ConfigError(f"{file}: model_type: {text}")
    wanted = {"hidden_act": "silu", "attention_bias": kind.attention_bias, "mlp_bias": False}
    for field, value in wanted.items():
        given = getattr(found, field)
        if given != value and not (given is None and isinstance(value, bool)):  # null is as if it were not there
            text = f"is {given!r:.60}; megatrain has {found.model_type!r} with {value!r} only"
            raise ConfigError(f"{file}: {field}: {text}. Take a model that has it so.")
    quantized = found.quantization_config or found.compression_config
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        named = f" ({method:.60})" if isinstance(method, str) else ""
        raise ConfigError(
            f"{file}: quantization_config: the weights are quantized{named}, and are not read without "
            "their scales. Take the model in bfloat16, or save it so with transformers, after `model.dequantize()`."
        )
    return kind


def _theta(content: ConfigJson, file: Path) -> float:
    """It may stand in three places, by the version that wrote the file."""
    given = [parse_model(_Rope, value, f"{file}: {name}", ConfigError).rope_theta for name, value in _ropes(content)]
    found = {theta for theta in (content.rope_theta, *given) if theta is not None}
    if len(found) > 1:
        raise ConfigError(f"{file}: rope_theta: is {' and '.join(map(str, sorted(found)))}: make them the same")
    return found.pop() if found else 10000.0


def _ropes(content: ConfigJson) -> list[tuple[str, dict[str, Any]]]:
    both = (("rope_parameters", content.rope_parameters), ("rope_scaling", content.rope_scaling))
    return [(name, value) for name, value in both if value]


def _scaling(content: ConfigJson, file: Path) -> RopeScaling | None:
    found = [_scaling_of(value, f"{file}: {name}") for name, value in _ropes(content)]
    if any(scaling != found[0] for scaling in found):
        raise ConfigError(f"{file}: rope_scaling: differs from rope_parameters: make them the same")
    return found[0] if found else None


def _scaling_of(given: dict[str, Any], where: str) -> RopeScaling | None:
    rope = parse_model(_Rope, given, where, ConfigError)
    kind = rope.rope_type or rope.type or "default"
    if kind not in ("default", SCALED):
        text = f"is {kind!r:.60}; megatrain has 'default' and {SCALED!r}"
        raise ConfigError(f"{where}.rope_type: {text}")
    if rope.partial_rotary_factor != 1:
        text = f"is {rope.partial_rotary_factor}; megatrain turns all channels of a head (1.0)"
        raise ConfigError(f"{where}.partial_rotary_factor: {text}")
    if kind == "default":
        return None
    values = {name: given[name] for name in RopeScaling.model_fields if name in given}
    if missing := [name for name in RopeScaling.model_fields if name not in values]:
        raise ConfigError(f"{where}.{missing[0]}: is missing")
    return parse_model(RopeScaling, values, where, ConfigError)


def config_json(
    config: ModelSection,
    *,
    max_position_embeddings: int,
    dtype: str = "float32",
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        max_position_embeddings: the sequence length of training, in tokens.
        dtype: of the tensors beside it, such as "bfloat16".

    Raises:
        ConfigError: the family has no counterpart in `transformers`.
    """
    family = FAMILIES.get(config.family)
    if family.huggingface_config is None:
        raise ConfigError(f"model.family: {config.family}: has no counterpart in transformers, and is not exported")
    return {
        **family.huggingface_config(config),
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": max_position_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,  # its name in transformers 4
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
