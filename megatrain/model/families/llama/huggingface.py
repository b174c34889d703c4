"""A Llama's sizes as `transformers` calls them."""

from typing import Any

from megatrain.model.families.llama.section import LlamaSection

SCALED = "llama3"  # the rope_type of RopeScaling


def huggingface_config(section: LlamaSection) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default"}
    if section.rope_scaling is not None:
        rope = {"rope_type": SCALED, **section.rope_scaling.model_dump()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
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
