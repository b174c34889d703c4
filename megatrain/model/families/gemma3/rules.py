"""Rules between the sizes of a Gemma 3, and the family's own shape at other sizes."""

from collections.abc import Iterator
from typing import Any

from megatrain.base.arithmetic import nearest_divisor
from megatrain.model.families.gemma3.section import Gemma3Section

_DEFAULT_TYPES = Gemma3Section.model_fields["layer_types"].default


def issues(section: Gemma3Section) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each rule that is broken."""
    heads, kv = section.num_attention_heads, section.key_value_heads
    if section.head_dim % 2:
        yield "head_dim", section.head_dim, "must be even: rotary embeddings turn pairs of channels", ""
    if section.hidden_size % heads:  # transformers loads no other
        rule = f"does not divide model.hidden_size ({section.hidden_size})"
        yield "num_attention_heads", heads, rule, f"Try {nearest_divisor(section.hidden_size, heads)}."
    if heads % kv:
        rule = f"does not divide model.num_attention_heads ({heads})"
        yield "num_key_value_heads", kv, rule, f"Try {nearest_divisor(heads, kv)}."
    if len(section.layer_types) > section.num_hidden_layers and section.layer_types != _DEFAULT_TYPES:
        rule = f"names more layers than model.num_hidden_layers ({section.num_hidden_layers})"
        yield "layer_types", list(section.layer_types), rule, ""


def resized(section: Gemma3Section, heads: int) -> Gemma3Section:
    """The shape of the 4B: heads of 256, half as many for keys and values, 320 channels and 4 layers per head, an MLP
    4 times as wide as the model."""
    width = heads * 320
    sizes = {"num_hidden_layers": max(2, 4 * heads), "hidden_size": width, "num_attention_heads": heads}
    more = {"num_key_value_heads": max(1, heads // 2), "head_dim": 256, "intermediate_size": 4 * width}
    return section.model_copy(update={**sizes, **more})
