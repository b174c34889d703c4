"""Rules between the sizes of a BERT, and the family's own shape at other sizes."""

from collections.abc import Iterator
from typing import Any

from megatrain.base.arithmetic import nearest_divisor
from megatrain.model.families.bert.section import BertSection

_HEAD = 64  # channels


def issues(section: BertSection) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix) of each rule that is broken."""
    heads = section.num_attention_heads
    if section.hidden_size % heads:
        rule = f"does not divide model.hidden_size ({section.hidden_size})"
        yield "num_attention_heads", heads, rule, f"Try {nearest_divisor(section.hidden_size, heads)}."
    if section.longest_sequence < 1:
        rule = f"leaves no position of model.max_position_embeddings ({section.max_position_embeddings})"
        yield "position_offset", section.position_offset, rule, "0 is BERT's, 2 is RoBERTa's."
    if section.model_type == "bert" and section.position_offset:
        rule = "positions of model.model_type 'bert' begin at 0"
        yield "position_offset", section.position_offset, rule, "Leave model_type out, or set it to roberta."


def resized(section: BertSection, heads: int) -> BertSection:
    """The shape of BERT: heads of 64; as many layers as heads in base, 24 in large and beyond."""
    sizes = {"num_hidden_layers": max(2, min(heads, 24)), "hidden_size": heads * _HEAD, "num_attention_heads": heads}
    return section.model_copy(update={**sizes, "intermediate_size": None})
