"""config.json of Gemma 3's text models in `transformers`: read, and written. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.families.gemma3.gemma2_json import gemma2_config, read_gemma2
from megatrain.model.families.gemma3.section import Gemma3Section
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
from megatrain.model.rope import LinearScaling

MODEL_TYPES = ("gemma3_text", "gemma2")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_ACTIVATION = "gelu_pytorch_tanh"


class _ConfigJson(Part):
    """What config.json says of the weights, with the defaults of transformers' Gemma3TextConfig."""

    num_hidden_layers: Layers = 26
    hidden_size: Width = 2304
    num_attention_heads: Width = 8
    num_key_value_heads: Width = 4
    head_dim: Width = 256
    intermediate_size: Width = 9216
    vocab_size: Width = 262_208
    max_position_embeddings: Positions = 131_072
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    query_pre_attn_scalar: Width = 256
    sliding_window: Positions = 4096
    final_logit_softcapping: float | None = None
    layer_types: list[str] | None = None
    sliding_window_pattern: Layers = 6
    rope_theta: float | None = None  # of global layers; this and the next of files of transformers 4
    rope_local_base_freq: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, dict[str, Any] | None] | None = None


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    hidden_activation: Any = _ACTIVATION
    attention_bias: Any = False
    attn_logit_softcapping: Any = None
    use_bidirectional_attention: Any = False
    tie_word_embeddings: Any = True


_SAME_NAME = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "initializer_range",
    "query_pre_attn_scalar",
    "sliding_window",
    "final_logit_softcapping",
)


def read_config(file: Path, model_type: str) -> tuple[Gemma3Section, int]:
    """The model of a config.json, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    if model_type == "gemma2":
        return read_gemma2(file, model_type)
    wanted = {name: field.default for name, field in _Function.model_fields.items()}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    layers, every = content.num_hidden_layers, content.sliding_window_pattern
    types = layer_types(file, content, (_GLOBAL, _LOCAL), layers)
    types = types or tuple(_LOCAL if (layer + 1) % every else _GLOBAL for layer in range(layers))
    given = {kind: (content.rope_parameters or {}).get(kind) for kind in (_GLOBAL, _LOCAL)}
    everywhere = {f"rope_parameters.{_GLOBAL}": given[_GLOBAL], "rope_scaling": content.rope_scaling}
    local = {f"rope_parameters.{_LOCAL}": given[_LOCAL]}
    scaling = rope_scaling(everywhere, file)
    if not isinstance(scaling, LinearScaling | None) or rope_scaling(local, file) is not None:
        raise ConfigError(f"{file}: rope_scaling: megatrain has {model_type!r} with 'linear', of global layers, only")
    values = {name: getattr(content, name) for name in _SAME_NAME} | {
        "layer_types": types,
        "rope_theta": rope_theta(content.rope_theta, everywhere, file, 1_000_000.0),
        "local_rope_theta": rope_theta(content.rope_local_base_freq, local, file),
        "rope_factor": 1.0 if scaling is None else scaling.factor,
    }
    return parse_model(Gemma3Section, values, file, ConfigError), content.max_position_embeddings


def huggingface_config(section: Gemma3Section) -> dict[str, Any]:
    """
    Raises:
        ConfigError: transformers has no such model.
    """
    if not section.qk_norm:
        return gemma2_config(section)
    if section.attn_logit_softcapping is not None:
        raise ConfigError(
            f"model.attn_logit_softcapping: {section.attn_logit_softcapping}: transformers has Gemma 3 without, and "
            "this is not exported. Gemma 2 has it (model.qk_norm: false)."
        )
    types = [section.layer_types[layer % len(section.layer_types)] for layer in range(section.num_hidden_layers)]
    linear = {"rope_type": "linear", "factor": section.rope_factor} if section.rope_factor > 1 else None
    everywhere = (linear or {"rope_type": "default"}) | {"rope_theta": section.rope_theta}
    local = {"rope_type": "default", "rope_theta": section.local_rope_theta}
    same = {name: getattr(section, name) for name in _SAME_NAME if name not in ("vocab_size", "initializer_range")}
    is_classifier = section.num_labels is not None
    if is_classifier and section.classifies != "sequence":
        raise ConfigError(
            "model.family: gemma3: transformers has no classifier of its tokens or spans, and this is not exported"
        )
    return {
        **same,
        "architectures": ["Gemma3TextForSequenceClassification" if is_classifier else "Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_key_value_heads": section.key_value_heads,
        "layer_types": types,
        "rope_parameters": {_GLOBAL: everywhere, _LOCAL: local},
        "hidden_activation": _ACTIVATION,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }
