"""A Llama's sizes as `transformers` calls them."""

from typing import Any

from megatrain.base.errors import ConfigError
from megatrain.model.class_table import purpose
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.window import CAUSAL


def huggingface_config(section: LlamaSection) -> dict[str, Any]:
    """Of the model type that has these weights.

    Raises:
        ConfigError: none has.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if section.rope_scaling is not None:
        rope = section.rope_scaling.model_dump(exclude_none=True)
    found = _model_type(section)
    return {
        **found,
        "architectures": [found["architectures"] + purpose(section, "ForCausalLM")],
        **({} if section.num_labels is None else {"classifier_dropout": 0.0}),
        "num_hidden_layers": section.num_hidden_layers,
        "hidden_size": section.hidden_size,
        "num_attention_heads": section.num_attention_heads,
        "num_key_value_heads": section.key_value_heads,
        "head_dim": section.head_size,
        "intermediate_size": section.intermediate_size,
        "rms_norm_eps": section.rms_norm_eps,
        "attention_dropout": 0.0,
        "rope_theta": section.rope_theta,  # this and the next line are for transformers 4; 5 reads the one after
        "rope_scaling": rope if section.rope_scaling is not None else None,
        "rope_parameters": {**rope, "rope_theta": section.rope_theta},
    }


def exported_name(section: LlamaSection, name: str) -> str:
    """`…ForQuestionAnswering` of Llama and Qwen calls the bare model "transformer"; Mistral's does not."""
    if section.classifies != "span" or section.num_labels is None or _model_type(section)["model_type"] == "mistral":
        return name
    return "transformer." + name.removeprefix("model.") if name.startswith("model.") else name


def _model_type(section: LlamaSection) -> dict[str, Any]:
    """Its fields, and in `architectures` what the names of its classes begin with."""
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := getattr(section, name)) is not None and (section.num_labels is None or name.startswith("attn")):
            raise ConfigError(
                f"model.{name}: {cap}: a Llama with soft caps has no counterpart in transformers, and is not exported. "
                "Gemma 2 has (model.family: gemma3, model.qk_norm: false)."
            )
    if section.attention_bias and section.qk_norm:
        raise ConfigError(
            "model.qk_norm: True: together with model.attention_bias has no counterpart in transformers, and is not "
            "exported. A model with one of the two is."
        )
    if not (section.attention_bias or section.qk_norm):
        if section.sliding_window is None:
            plain = {"attention_bias": False, "mlp_bias": False}
            return {"architectures": "Llama", "model_type": "llama", "hidden_act": "silu", **plain}
        if section.layer_types is None:
            window = {"sliding_window": section.sliding_window}
            return {"architectures": "Mistral", "model_type": "mistral", "hidden_act": "silu", **window}
    types = ["full_attention" if window == CAUSAL else "sliding_attention" for window in section.windows]
    windows = {
        "hidden_act": "silu",
        "use_sliding_window": section.sliding_window is not None,
        "sliding_window": section.sliding_window,
        "layer_types": types,
        "max_window_layers": _first_sliding(types),
    }
    if section.attention_bias:
        return {"architectures": "Qwen2", "model_type": "qwen2", **windows}
    if section.qk_norm:
        return {"architectures": "Qwen3", "model_type": "qwen3", "attention_bias": False, **windows}
    raise ConfigError(
        f"model.layer_types: {list(section.layer_types or ())}: local and global layers without model.attention_bias "
        "or model.qk_norm have no counterpart in transformers, and are not exported. A model that has the window in "
        "all layers is."
    )


def _first_sliding(types: list[str]) -> int:
    return types.index("sliding_attention") if "sliding_attention" in types else len(types)
