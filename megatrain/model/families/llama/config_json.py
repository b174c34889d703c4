"""config.json of the model types of `transformers` that are Llamas -> `model:`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.huggingface_config import (
    CONFIG_LIMIT,
    Layers,
    Part,
    Positions,
    Width,
    layer_types,
    require,
    rope_scaling,
    rope_theta,
)

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
_DEFAULT_WINDOW = 4096  # positions, of a sliding_window that is not given


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelType:
    """What a model type of `transformers` has.

    Attributes:
        attention_bias, qk_norm: of a LlamaSection.
        defaults: of fields that are not given at all, where they are not _ConfigJson's; null is not one of them.
        always_slides: whether sliding_window holds without use_sliding_window; None: there is no sliding window.
    """

    attention_bias: bool = False
    qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    always_slides: bool | None = None


_MODEL_TYPES = {
    "llama": _ModelType(),
    "mistral": _ModelType(defaults={"num_key_value_heads": 8}, always_slides=True),
    "qwen2": _ModelType(attention_bias=True, defaults={"num_key_value_heads": 32}, always_slides=False),
    "qwen3": _ModelType(qk_norm=True, defaults={"num_key_value_heads": 32, "head_dim": 128}, always_slides=False),
}
MODEL_TYPES = tuple(_MODEL_TYPES)


class _ConfigJson(Part):
    """What config.json says of the weights; defaults are those of every model type here."""

    num_hidden_layers: Layers
    hidden_size: Width
    num_attention_heads: Width
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    intermediate_size: Width
    vocab_size: Width
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    max_position_embeddings: Positions
    rope_theta: float | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    hidden_act: Any = "silu"
    attention_bias: Any = None
    mlp_bias: Any = None


class _Window(Part):
    """What config.json says of sliding-window attention."""

    max_position_embeddings: Positions
    use_sliding_window: bool | None = False
    sliding_window: Positions | None = _DEFAULT_WINDOW
    layer_types: list[str] | None = None
    max_window_layers: int = 28  # the layers from this one on have the window: Qwen2's and Qwen3's default


def read_config(file: Path, model_type: str) -> tuple[LlamaSection, int]:
    """The model of a config.json of one of MODEL_TYPES, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    kind = _MODEL_TYPES[model_type]
    wanted = {"hidden_act": "silu", "attention_bias": kind.attention_bias, "mlp_bias": False}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    values = {name: getattr(content, name) for name in _SAME_NAME}
    values |= {name: value for name, value in kind.defaults.items() if name not in content.model_fields_set}
    values |= {"attention_bias": kind.attention_bias, "qk_norm": kind.qk_norm}
    ropes = {"rope_parameters": content.rope_parameters, "rope_scaling": content.rope_scaling}
    values |= {"rope_theta": rope_theta(content.rope_theta, ropes, file), "rope_scaling": rope_scaling(ropes, file)}
    if kind.always_slides is not None:
        values |= _sliding(file, kind, content.num_hidden_layers)
    return parse_model(LlamaSection, values, file, ConfigError), content.max_position_embeddings


def _sliding(file: Path, kind: _ModelType, layers: int) -> dict[str, Any]:
    """`sliding_window` and `layer_types`; a window that is no shorter than the longest sequence hides nothing, and is
    left out."""
    found = read_model(file, _Window, error=ConfigError, limit=CONFIG_LIMIT)
    types = layer_types(file, found, ("full_attention", "sliding_attention"))
    window = found.sliding_window if kind.always_slides or found.use_sliding_window else None
    if window is None or window >= found.max_position_embeddings:
        if types and window is None and "sliding_attention" in types:
            raise ConfigError(f"{file}: layer_types: has 'sliding_attention', but there is no sliding_window. Set it.")
        return {}
    if types is None and not kind.always_slides:
        full = min(max(found.max_window_layers, 0), layers)
        types = ("full_attention",) * full + ("sliding_attention",) * (layers - full)
    if types is None or set(types) == {"sliding_attention"}:
        return {"sliding_window": window}
    if len(types) != layers:
        raise ConfigError(f"{file}: layer_types: has {len(types)} layers, num_hidden_layers is {layers}")
    return {"sliding_window": window, "layer_types": types} if "sliding_attention" in types else {}
