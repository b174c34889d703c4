"""Which rows of the parameter table are trained, and the rows that an adapter adds. No torch."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from megatrain.adapters.registry import ADAPTERS, AdapterSection
from megatrain.model.parameter_row import EMBEDDING, ParameterRow


def is_linear(row: ParameterRow) -> bool:
    """Whether it is the weight of a linear layer of blocks, which adapters can stand beside."""
    return row.is_hidden_matrix and row.name.endswith(".weight") and not row.of_adapter


def with_adapter(
    adapter: AdapterSection, table: Iterable[ParameterRow], head: Collection[str]
) -> Iterator[ParameterRow]:
    """The table with the adapter's rows behind the weights that they belong to; these are trained, and the head.

    Args:
        head: names of what only a classifier has: its head, and a pooler.
    """
    rows = ADAPTERS.get(adapter.name).rows
    for row in table:
        yield replace(row, trained=row.name in head)
        if is_linear(row):
            yield from rows(adapter, row)


def top_layers(count: int, table: Iterable[ParameterRow], layers: int) -> Iterator[ParameterRow]:
    """The table of a model of which the last `count` layers are trained, and what stands behind them: its last norm and
    its head, unless that is the embedding."""
    first, behind = layers - count, False
    for row in table:
        if row.layers is None:
            yield replace(row, trained=behind and row.name != EMBEDDING)
            continue
        behind = True
        below = sum(layer < first for layer in row.layers)
        for part, trained in ((row.layers[:below], False), (row.layers[below:], True)):
            if part:
                yield replace(row, layers=part, trained=trained)
