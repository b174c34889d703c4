"""A small model and layouts of it, for the planner's formulas."""

from typing import Any

from launcher.planning.layout import Layout
from megatrain.model.families.llama.section import LlamaSection

MODEL = LlamaSection(
    num_hidden_layers=4,
    hidden_size=256,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=512,
    vocab_size=1024,
)
_BASE = {
    "tensor_parallel": 1,
    "data_parallel": 8,
    "zero_stage": 1,
    "sequence_parallel": False,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "activation_checkpointing": "none",
}


def layout(**changes: Any) -> Layout:
    return Layout(**(_BASE | changes))
