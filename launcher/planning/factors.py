"""What an optimizer costs that keeps, of matrices, a number for each row and for each column: Adafactor.

Read in megatrain/parallel/whole_sums.py. Every rank has the factors of the whole model, whatever the layout, and adds
its sums to those of the others twice in an update.
"""

from functools import lru_cache

from launcher.planning.hardware import Link
from launcher.planning.layout import Layout
from megatrain.model.architecture import ModelSection, rows
from megatrain.optim.registry import OPTIMIZERS

ELEMENTS_AT_ONCE = 16 * 1024 * 1024  # as megatrain/parallel/whole_sums.py has it; a test compares them
_REWRITTEN_BYTES = 48  # a parameter: its gradient squared, summed, divided by two factors, squared again, and scaled


@lru_cache(256)
def factor_bytes(model: ModelSection, optimizer: str) -> int:
    """Of rows and columns of all matrices that are trained, on every rank and in a checkpoint."""
    is_factored = OPTIMIZERS.get(optimizer).is_factored
    return sum(4 * row.count * sum(row.shape) for row in rows(model) if row.trained and is_factored(row.shape))


def updating_bytes(model: ModelSection, layout: Layout) -> float:
    """While it updates: this step's sums, or what divides gradients, and the squares of a part of a weight."""
    factors = factor_bytes(model, layout.optimizer.name)
    if not factors:
        return 0.0
    largest = max(row.local_elements(layout.tensor_parallel) for row in rows(model) if row.trained)
    return factors + 4 * min(largest, _updated(model, layout), ELEMENTS_AT_ONCE)


def rewritten_bytes(model: ModelSection, layout: Layout) -> float:
    """Bytes that a rank moves beyond those of a fused update."""
    if not factor_bytes(model, layout.optimizer.name):
        return 0.0
    return _REWRITTEN_BYTES * _updated(model, layout)


def seconds(model: ModelSection, layout: Layout, link: Link) -> float:
    """Two sums over all ranks, around a ring: of the factors, and of a number for each weight.

    Args:
        link: that all ranks share.
    """
    factors, world = factor_bytes(model, layout.optimizer.name), layout.world_size
    if not factors or world == 1:
        return 0.0
    waiting = 4 * min(world - 1, 2 * world.bit_length()) * link.latency * 1e-6
    return 2 * factors * (world - 1) / world / (link.bandwidth * 1e9) + waiting


def _updated(model: ModelSection, layout: Layout) -> float:
    """Elements that a rank updates."""
    elements = sum(row.count * row.local_elements(layout.tensor_parallel) for row in rows(model) if row.trained)
    return elements / (layout.replicas if layout.zero_stage else 1)
