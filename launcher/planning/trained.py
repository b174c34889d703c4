"""Of a model that is trained in part, what is trained: elements on one tensor-parallel rank."""

from collections.abc import Iterable
from functools import lru_cache

from megatrain.model.architecture import ModelSection, rows
from megatrain.model.parameter_row import ParameterRow


@lru_cache(256)
def trained_parameters(model: ModelSection, tensor_parallel: int) -> float:
    """What the parameter table splits is divided over the tensor-parallel ranks, the rest is on each."""
    return _elements((row for row in rows(model) if row.trained), tensor_parallel)


@lru_cache(256)
def largest_trained(model: ModelSection, tensor_parallel: int) -> float:
    """The largest tensor."""
    return max(row.local_elements(tensor_parallel) for row in rows(model) if row.trained)


@lru_cache(256)
def trained_of_block(model: ModelSection, tensor_parallel: int) -> float:
    """Of one of the layers that are trained."""
    of_blocks = (row for row in rows(model) if row.trained and row.layers is not None)
    return _elements(of_blocks, tensor_parallel) / max(1, trained_layers(model))


def trained_layers(model: ModelSection) -> int:
    """Layers that a backward pass goes through, the last ones."""
    return model.num_hidden_layers - model.first_trained_layer


@lru_cache(256)
def trained_embedding(model: ModelSection, tensor_parallel: int) -> float:
    """Of the tokens' embedding: nothing where it is frozen."""
    return _elements((row for row in rows(model) if row.trained and row.name == model.outer_names[0]), tensor_parallel)


@lru_cache(256)
def head_is_trained(model: ModelSection) -> bool:
    embedding, head = model.outer_names
    name = embedding if model.ties_head else head
    return any(row.trained for row in rows(model) if row.name == name)


@lru_cache(256)
def adapter_widths(model: ModelSection, tensor_parallel: int) -> tuple[float, float]:
    """Channels that an adapter makes of a token in a block: all, and those inside it, which are kept for the backward
    pass (what it adds to a layer's output is not)."""
    made = [(row, row.local_shape(tensor_parallel)[0]) for row in rows(model) if row.of_adapter and row.layers]
    inside = sum(width for row, width in made if row.name.endswith("_a"))
    return sum(width for _, width in made), inside


def _elements(table: Iterable[ParameterRow], tensor_parallel: int) -> float:
    return sum(row.count * row.local_elements(tensor_parallel) for row in table)
