"""Rules between the sizes of a GPT, and the family's own shape at other sizes."""

from collections.abc import Iterator
from typing import Any

from megatrain.base.arithmetic import nearest_divisor
from megatrain.model.families.gpt.section import GPTSection

_HEAD = 64  # channels


def issues(section: GPTSection) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each rule that is broken."""
    heads = section.num_attention_heads
    if section.hidden_size % heads:
        rule = f"does not divide model.hidden_size ({section.hidden_size})"
        yield "num_attention_heads", heads, rule, f"Try {nearest_divisor(section.hidden_size, heads)}."


def resized(section: GPTSection, heads: int) -> GPTSection:
    """The shape of GPT-2: heads of 64, and as many layers as heads, up to the 48 of its largest."""
    sizes = {"num_hidden_layers": max(2, min(heads, 48)), "hidden_size": heads * _HEAD, "num_attention_heads": heads}
    return section.model_copy(update={**sizes, "intermediate_size": None})
