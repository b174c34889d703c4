"""Of a model that is trained in part, what is trained: elements on one tensor-parallel rank."""

from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache

from launcher.planning.layout import Layout
from megatrain.adapters.registry import ADAPTERS, Widths
from megatrain.model.architecture import ModelSection, rows
from megatrain.model.parameter_row import Kind, ParameterRow
from megatrain.model.trained import is_linear


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
def adapter_widths(model: ModelSection, layout: Layout) -> Widths:
    """Of all that an adapter has in a block, a token on one tensor-parallel rank."""
    if model.adapter is None:
        return Widths()
    spec, t = ADAPTERS.get(model.adapter.name), layout.tensor_parallel
    share = 1 / t if spec.behind and layout.sequence_parallel else 1.0  # of the tokens: in the residual stream
    found = [spec.widths(row, row.local_shape(t)) for row in rows(model) if row.of_adapter and row.layers]
    return Widths(*(share * sum(getattr(one, field.name) for one in found) for field in fields(Widths)))


@lru_cache(256)
def inputs_not_kept(model: ModelSection, tensor_parallel: int) -> float:
    """Channels of a token in a block that only gradients of weights need, where those are frozen and no adapter stands
    beside them: what enters attention, what enters the MLP, and what its last layer multiplies."""
    if model.adapter is None:
        return 0.0
    beside = {row.name.rpartition(".")[0] for row in rows(model) if row.of_adapter}
    needed = {
        (row.kind, row.split) for row in rows(model) if is_linear(row) and row.name.removesuffix(".weight") in beside
    }
    streams = sum((kind, 0) not in needed for kind in (Kind.ATTENTION, Kind.MLP))
    return streams * model.hidden_size + ((Kind.MLP, 1) not in needed) * model.mlp_width / tensor_parallel


def _elements(table: Iterable[ParameterRow], tensor_parallel: int) -> float:
    return sum(row.count * row.local_elements(tensor_parallel) for row in table)
