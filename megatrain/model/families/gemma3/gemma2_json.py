"""config.json of Gemma 2 in `transformers`: read, and written. No torch.

Gemma 2 is a Gemma 3 without norms of heads, whose layers all turn alike, with soft caps (arXiv 2408.00118).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.class_table import purpose
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

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_ACTIVATION = "gelu_pytorch_tanh"


class _ConfigJson(Part):
    """What config.json says of the weights, with the defaults of transformers' Gemma2Config."""

    num_hidden_layers: Layers = 26
    hidden_size: Width = 2304
    num_attention_heads: Width = 8
    num_key_value_heads: Width = 4
    head_dim: Width = 256
    intermediate_size: Width = 9216
    vocab_size: Width = 256_000
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    query_pre_attn_scalar: Width = 256
    sliding_window: Positions = 4096
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0


class _Further(Part):
    """What has another form in a section."""

    max_position_embeddings: Positions = 8192
    layer_types: list[str] | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    hidden_activation: Any = _ACTIVATION
    attention_bias: Any = False
    use_bidirectional_attention: Any = False
    tie_word_embeddings: Any = True


def read_gemma2(file: Path, model_type: str) -> tuple[Gemma3Section, int]:
    """The model of a config.json, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    wanted = {name: field.default for name, field in _Function.model_fields.items()}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    further = read_model(file, _Further, error=ConfigError, limit=CONFIG_LIMIT)
    layers = content.num_hidden_layers
    types = layer_types(file, further, (_GLOBAL, _LOCAL), layers) or (_LOCAL, _GLOBAL)[:layers]
    ropes = {"rope_parameters": further.rope_parameters, "rope_scaling": further.rope_scaling}
    if rope_scaling(ropes, file) is not None:
        raise ConfigError(f"{file}: rope_scaling: megatrain has {model_type!r} without")
    theta = rope_theta(further.rope_theta, ropes, file)
    values = {name: getattr(content, name) for name in _ConfigJson.model_fields} | {
        "qk_norm": False,
        "layer_types": types,
        "rope_theta": theta,
        "local_rope_theta": theta,
    }
    return parse_model(Gemma3Section, values, file, ConfigError), further.max_position_embeddings


def gemma2_config(section: Gemma3Section) -> dict[str, Any]:
    """
    Raises:
        ConfigError: it has what Gemma 2 has not.
    """
    if section.rope_factor != 1 or section.local_rope_theta != section.rope_theta:
        raise ConfigError(
            f"model.local_rope_theta: {section.local_rope_theta}: without model.qk_norm this is a Gemma 2, which turns "
            f"all layers by rope_theta ({section.rope_theta}), without a rope_factor: another model has no counterpart "
            "in transformers, and is not exported."
        )
    types = [section.layer_types[layer % len(section.layer_types)] for layer in range(section.num_hidden_layers)]
    named = _ConfigJson.model_fields.keys() - {"vocab_size", "initializer_range"}
    return {
        **{name: getattr(section, name) for name in sorted(named)},
        "architectures": ["Gemma2" + purpose(section, "ForCausalLM")],
        "model_type": "gemma2",
        "num_key_value_heads": section.key_value_heads,
        "layer_types": types,
        "rope_theta": section.rope_theta,  # this line is for transformers 4; 5 reads the one after
        "rope_parameters": {"rope_type": "default", "rope_theta": section.rope_theta},
        "hidden_activation": _ACTIVATION,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_bidirectional_attention": False,
    }
