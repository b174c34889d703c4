from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatrain.config import ModelSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.transformer import Transformer


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process as a process group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def section() -> ModelSection:
    return ModelSection(
        num_hidden_layers=2,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        vocab_size=64,
        initializer_range=0.2,
    )


@pytest.fixture
def make_model(section) -> Callable[..., Transformer]:
    def make(**fields: Any) -> Transformer:
        config = section.model_copy(update=fields)
        with torch.device("meta"):
            model = Transformer(config)
        materialize(model, lambda name, p: initial_weight(name, p.shape, config, 3))
        return model

    return make
