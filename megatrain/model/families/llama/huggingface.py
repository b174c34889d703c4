"""A Llama's sizes as `transformers` calls them."""

from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.model.families.llama.section import LlamaSection

SCALED = "llama3"  # the rope_type of RopeScaling


def huggingface_config(section: LlamaSection) -> dict[str, Any]:
    """Of the model type that has these weights.

    Raises:
        ConfigError: none has.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if section.rope_scaling is not None:
        rope = {"rope_type": SCALED, **section.rope_scaling.model_dump()}
    return {
        **_model_type(section),
        "num_hidden_layers": section.num_hidden_layers,
        "hidden_size": section.hidden_size,
        "num_attention_heads": section.num_attention_heads,
        "num_key_value_heads": section.key_value_heads,
        "head_dim": section.head_size,
        "intermediate_size": section.intermediate_size,
        "rms_norm_eps": section.rms_norm_eps,
        "rope_theta": section.rope_theta,  # this and the next line are for transformers 4; 5 reads the one after
        "rope_scaling": rope if section.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": section.rope_theta},
    }


def _model_type(section: LlamaSection) -> dict[str, Any]:
    if section.attention_bias and section.qk_norm:
        raise ConfigError(
            "model.qk_norm: True: together with model.attention_bias has no counterpart in transformers, and is not "
            "exported. A model with one of the two is."
        )
    if not (section.attention_bias or section.qk_norm):
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }
    whole = {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * section.num_hidden_layers,
    }
    if section.attention_bias:
        return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **whole}
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, **whole}
