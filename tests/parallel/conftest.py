from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatrain.config import ModelSection
from megatrain.model.architecture import row_of
from megatrain.model.families.llama.module import Llama
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process as a process group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def section() -> ModelSection:
    return LlamaSection(
        num_hidden_layers=2,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        vocab_size=64,
        initializer_range=0.2,
    )


@pytest.fixture
def make_model(section) -> Callable[..., Llama]:
    def make(**fields: Any) -> Llama:
        config = section.model_copy(update=fields)
        with torch.device("meta"):
            model = Llama(config)
        materialize(model, lambda name, p: initial_weight(row_of(config, name), 3))
        return model

    return make
