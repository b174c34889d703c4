from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatrain.config import ModelSection
from megatrain.model.architecture import row_of
from megatrain.model.families.llama.module import Llama
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize


@pytest.fixture
def model_section() -> Callable[..., ModelSection]:
    """A tiny model with grouped queries, and heads that do not fill the residual stream."""

    def make(**fields: Any) -> ModelSection:
        tiny: dict[str, Any] = {
            "num_hidden_layers": 2,
            "hidden_size": 24,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 40,
            "vocab_size": 64,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500.0,
            "initializer_range": 0.3,  # large, so that attention is far from uniform
        }
        return LlamaSection.model_validate(tiny | fields)

    return make


@pytest.fixture
def make_model() -> Callable[[ModelSection], Llama]:
    def make(section: ModelSection) -> Llama:
        with torch.device("meta"):
            model = Llama(section)
        materialize(model, lambda name, p: initial_weight(row_of(section, name), 3))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norm weights of one would hide a swapped pair
                generator = torch.Generator().manual_seed(len(name))
                parameter.data = torch.empty_like(parameter).uniform_(0.5, 1.5, generator=generator)
        return model

    return make
