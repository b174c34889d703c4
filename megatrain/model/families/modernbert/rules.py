"""Rules between the sizes of a ModernBERT, and the family's own shape at other sizes."""

from collections.abc import Iterator
from typing import Any

from megatrain.base.arithmetic import nearest_divisor
from megatrain.model.families.modernbert.section import ModernBertSection

_HEAD = 64  # channels


def issues(section: ModernBertSection) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each rule that is broken."""
    heads = section.num_attention_heads
    if section.hidden_size % heads:
        rule = f"does not divide model.hidden_size ({section.hidden_size})"
        yield "num_attention_heads", heads, rule, f"Try {nearest_divisor(section.hidden_size, heads)}."
    elif section.head_size % 2:
        rule = f"leaves heads of {section.head_size} channels, which rotary embeddings turn in pairs"
        yield "num_attention_heads", heads, rule, ""
    if len(section.layer_types) > section.num_hidden_layers and section.layer_types != _DEFAULT_TYPES:
        rule = f"names more layers than model.num_hidden_layers ({section.num_hidden_layers})"
        yield "layer_types", list(section.layer_types), rule, ""


_DEFAULT_TYPES = ModernBertSection.model_fields["layer_types"].default


def resized(section: ModernBertSection, heads: int) -> ModernBertSection:
    """The shape of ModernBERT: heads of 64; 22 layers and an MLP 1.5 times as wide as the model in base, 28 layers and
    2.5 times in large."""
    layers, ratio = (22, 1.5) if heads <= 12 else (28, 2.5)
    width = heads * _HEAD
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    return section.model_copy(update={**sizes, "intermediate_size": round(width * ratio)})
