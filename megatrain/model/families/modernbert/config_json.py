"""ModernBERT's config.json of `transformers`: read, and written. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.class_table import purpose
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.huggingface_config import (
    CONFIG_LIMIT,
    LONGEST,
    Layers,
    Part,
    Positions,
    Width,
    layer_types,
    require,
    rope_scaling,
    rope_theta,
)
from megatrain.model.window import LayerType

MODEL_TYPES = ("modernbert",)
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


class _ConfigJson(Part):
    """What config.json says of the weights, with the defaults of transformers' ModernBertConfig."""

    num_hidden_layers: Layers = 22
    hidden_size: Width = 768
    num_attention_heads: Width = 12
    intermediate_size: Width = 1152
    vocab_size: Width = 50368
    max_position_embeddings: Positions = 8192
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    local_attention: Annotated[int, Field(ge=0, le=LONGEST)] = 128  # 0: a local layer sees its own position only
    global_attn_every_n_layers: Layers = 3
    layer_types: list[str] | None = None
    global_rope_theta: float | None = None  # this and the next of files of transformers 4
    local_rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, dict[str, Any] | None] | None = None


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    hidden_activation: Any = "gelu"
    classifier_activation: Any = "gelu"
    norm_bias: Any = False
    attention_bias: Any = False
    mlp_bias: Any = False
    classifier_bias: Any = False
    decoder_bias: Any = True
    tie_word_embeddings: Any = True


def read_config(file: Path, model_type: str) -> tuple[ModernBertSection, int]:
    """The model of a config.json, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    wanted = {name: field.default for name, field in _Function.model_fields.items()}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    layers, every = content.num_hidden_layers, content.global_attn_every_n_layers
    types = layer_types(file, content, (_GLOBAL, _LOCAL), layers)
    types = types or tuple(_LOCAL if layer % every else _GLOBAL for layer in range(layers))
    everywhere = _theta(content, file, _GLOBAL, content.global_rope_theta, 160000.0)
    # transformers 4: null is the theta of global layers
    is_null = "local_rope_theta" in content.model_fields_set and content.local_rope_theta is None
    values = {
        "num_hidden_layers": content.num_hidden_layers,
        "hidden_size": content.hidden_size,
        "num_attention_heads": content.num_attention_heads,
        "intermediate_size": content.intermediate_size,
        "vocab_size": content.vocab_size,
        "layer_norm_eps": content.norm_eps,
        "initializer_range": content.initializer_range,
        "sliding_window": content.local_attention // 2,
        "layer_types": types,
        "rope_theta": everywhere,
        "local_rope_theta": _theta(content, file, _LOCAL, content.local_rope_theta, everywhere if is_null else 10000.0),
    }
    return parse_model(ModernBertSection, values, file, ConfigError), content.max_position_embeddings


def _theta(content: _ConfigJson, file: Path, kind: str, given: float | None, default: float) -> float:
    rope = (content.rope_parameters or {}).get(kind)
    ropes = {f"rope_parameters.{kind}": rope, "rope_scaling": content.rope_scaling}
    if rope_scaling({name: value for name, value in ropes.items() if value}, file) is not None:
        raise ConfigError(f"{file}: rope_scaling: megatrain has 'modernbert' without one only")
    return rope_theta(given, ropes, file, default)


def _every(types: list[LayerType]) -> int | None:
    """n where every n-th layer from the first on is global, and no other."""
    places = [layer for layer, kind in enumerate(types) if kind == _GLOBAL]
    every = places[1] if len(places) > 1 else len(types)
    return every if places == list(range(0, len(types), every)) else None


def huggingface_config(section: ModernBertSection) -> dict[str, Any]:
    types = [section.layer_types[layer % len(section.layer_types)] for layer in range(section.num_hidden_layers)]
    every = _every(types)
    is_classifier = section.num_labels is not None
    return {
        "architectures": ["ModernBert" + purpose(section, "ForMaskedLM")],
        **({"classifier_pooling": "cls", "classifier_dropout": 0.0} if is_classifier else {}),
        "model_type": "modernbert",
        "num_hidden_layers": section.num_hidden_layers,
        "hidden_size": section.hidden_size,
        "num_attention_heads": section.num_attention_heads,
        "intermediate_size": section.intermediate_size,
        "norm_eps": section.layer_norm_eps,
        "local_attention": 2 * section.sliding_window,
        "layer_types": types,
        # transformers 4 knows no layer_types
        **({} if every is None else {"global_attn_every_n_layers": every}),
        "global_rope_theta": section.rope_theta,  # this and the next line are for transformers 4
        "local_rope_theta": section.local_rope_theta,
        "rope_parameters": {
            _GLOBAL: {"rope_type": "default", "rope_theta": section.rope_theta},
            _LOCAL: {"rope_type": "default", "rope_theta": section.local_rope_theta},
        },
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
    }
