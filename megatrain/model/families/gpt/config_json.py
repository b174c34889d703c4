"""GPT-2's config.json of `transformers`: read, and written. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.base.files import parse_model, read_model
from megatrain.model.class_table import purpose
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.huggingface_config import CONFIG_LIMIT, Layers, Part, Positions, Width, require

MODEL_TYPES = ("gpt2",)
_ACTIVATION = "gelu_new"  # the tanh approximation


class _ConfigJson(Part):
    """What config.json says of the weights, with the defaults of transformers' GPT2Config."""

    n_layer: Layers = 12
    n_embd: Width = 768
    n_head: Width = 12
    n_inner: Width | None = None
    n_positions: Positions = 1024
    vocab_size: Width = 50257
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True


class _Function(Part):
    """What decides whether this is the function that megatrain has."""

    activation_function: Any = _ACTIVATION
    scale_attn_weights: Any = True
    scale_attn_by_inverse_layer_idx: Any = False
    add_cross_attention: Any = False


def read_config(file: Path, model_type: str) -> tuple[GPTSection, int]:
    """The model of a config.json, and the longest sequence it was made for, in tokens.

    Raises:
        ConfigError: it has what this architecture has not; says what.
    """
    wanted = {name: field.default for name, field in _Function.model_fields.items()}
    require(file, read_model(file, _Function, error=ConfigError, limit=CONFIG_LIMIT), wanted, model_type)
    content = read_model(file, _ConfigJson, error=ConfigError, limit=CONFIG_LIMIT)
    values = {
        "num_hidden_layers": content.n_layer,
        "hidden_size": content.n_embd,
        "num_attention_heads": content.n_head,
        "intermediate_size": content.n_inner,
        "max_position_embeddings": content.n_positions,
        "vocab_size": content.vocab_size,
        "layer_norm_eps": content.layer_norm_epsilon,
        "initializer_range": content.initializer_range,
        "tie_word_embeddings": content.tie_word_embeddings,
    }
    return parse_model(GPTSection, values, file, ConfigError), content.n_positions


def huggingface_config(section: GPTSection) -> dict[str, Any]:
    return {
        "architectures": ["GPT2" + purpose(section, "LMHeadModel")],
        "model_type": "gpt2",
        "n_layer": section.num_hidden_layers,
        "n_embd": section.hidden_size,
        "n_head": section.num_attention_heads,
        "n_inner": section.intermediate_size,
        "n_positions": section.max_position_embeddings,
        "max_position_embeddings": section.max_position_embeddings,
        "activation_function": _ACTIVATION,
        "layer_norm_epsilon": section.layer_norm_eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        **({} if section.num_labels is None else {"classifier_dropout": 0.0}),
    }
