"""Tiny causal models of every kind that has a cache of its own way."""

import torch
from torch import nn

import megatrain.config  # noqa: F401 - registers the families
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.build import build_model
from megatrain.model.family import FAMILIES
from megatrain.model.initialization import initial_weight, materialize

VOCABULARY = 128
_SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "vocab_size": VOCABULARY,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
_PATTERN = {"layer_types": ["sliding_attention", "full_attention"], "num_key_value_heads": 2}
FIELDS = {
    "llama": {"family": "llama", "num_key_value_heads": 2},
    "mistral": {"family": "llama", "sliding_window": 5},
    "pattern": {"family": "llama", "sliding_window": 4, **_PATTERN},
    "qwen3": {"family": "llama", "qk_norm": True, "attention_bias": True, "tie_word_embeddings": True},
    "gpt": {"family": "gpt", "max_position_embeddings": 64},
    "gemma3": {"family": "gemma3", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
}


def section_of(name: str) -> ModelSection:
    fields = _SIZES | FIELDS[name]
    return FAMILIES.get(fields["family"]).section.model_validate(fields)


def model_of(section: ModelSection) -> nn.Module:
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, _: initial_weight(row_of(section, name), 5))
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (size,), generator=generator).tolist() for size in (3, 14, 1, 8)]
