"""Rules between the sizes of a Llama, and the family's own shape at other sizes."""

from collections.abc import Iterator
from typing import Any

from megatrain.base.arithmetic import nearest_divisor
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.rope import Llama3Scaling, YarnScaling

_HEAD = 128  # channels
_MLP_MULTIPLE = 128


def issues(section: LlamaSection) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each rule that is broken."""
    heads, kv = section.num_attention_heads, section.key_value_heads
    if section.head_dim is None and section.hidden_size % heads:
        fix = f"Try {nearest_divisor(section.hidden_size, heads)}, or set model.head_dim."
        yield "num_attention_heads", heads, f"does not divide model.hidden_size ({section.hidden_size})", fix
    elif section.head_size % 2:
        yield "head_dim", section.head_size, "must be even: rotary embeddings turn pairs of channels", ""
    scaling = section.rope_scaling
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        rule = f"must be more than low_freq_factor ({scaling.low_freq_factor})"
        yield "rope_scaling.high_freq_factor", scaling.high_freq_factor, rule, ""
    if isinstance(scaling, YarnScaling) and scaling.beta_fast <= scaling.beta_slow:
        rule = f"must be more than beta_slow ({scaling.beta_slow})"
        yield "rope_scaling.beta_fast", scaling.beta_fast, rule, ""
    if heads % kv:
        rule = f"does not divide model.num_attention_heads ({heads})"
        yield "num_key_value_heads", kv, rule, f"Try {nearest_divisor(heads, kv)}."
    slides = "sliding_attention" in (section.layer_types or ("sliding_attention",))
    if section.sliding_window is not None and not slides:
        fix = 'Add "sliding_attention" to model.layer_types, or leave model.sliding_window out.'
        yield "sliding_window", section.sliding_window, "no layer of model.layer_types has one", fix
    if section.layer_types and section.sliding_window is None and slides:
        rule = 'has "sliding_attention", but model.sliding_window is not set'
        yield "layer_types", list(section.layer_types), rule, "Set model.sliding_window to the positions that are seen."
    if section.layer_types and len(section.layer_types) > section.num_hidden_layers:
        rule = f"names more layers than model.num_hidden_layers ({section.num_hidden_layers})"
        yield "layer_types", list(section.layer_types), rule, ""


def resized(section: LlamaSection, heads: int) -> LlamaSection:
    """The shape of Llama 3: a layer for each head of 128, 8 key-value heads, an MLP 3.5 times as wide as the model."""
    width = heads * _HEAD
    return section.model_copy(
        update={
            "num_hidden_layers": max(2, heads),
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": None,
            "intermediate_size": -(-width * 7 // 2 // _MLP_MULTIPLE) * _MLP_MULTIPLE,
        }
    )
