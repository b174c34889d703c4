"""What an optimizer costs that updates hidden matrices as wholes: its state, its exchange and its products.

Read in megatrain/parallel/matrix_exchange.py. Each matrix has one owner among all ranks, which works on its matrices in
rounds of at most ROUND_ELEMENTS. H elements of hidden matrices in the whole model, N ranks, c bytes of a number that is
exchanged: 2 on an accelerator, 4 on a CPU.
"""

import math
from functools import lru_cache

from launcher.planning.factors import factor_bytes
from launcher.planning.hardware import Hardware, Link
from launcher.planning.layout import Layout
from megatrain.model.architecture import ModelSection, rows
from megatrain.model.parameter_row import ParameterRow
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection

ROUND_ELEMENTS = 64 * 1024 * 1024  # as megatrain/parallel/matrix_exchange.py has it; a test compares them
_REWRITTEN_BYTES = 20  # a hidden parameter: its gradient read and written by the momentum, by the scale, and packed


def exchanges(layout: Layout) -> bool:
    return OPTIMIZERS.get(layout.optimizer.name).matrices is not None


def state_bytes(model: ModelSection, layout: Layout) -> float:
    """Of the optimizer's state per parameter of a rank, without the fp32 weight: the mean of hidden matrices and the
    rest, of which tensor parallelism divides other parts."""
    return _state_bytes(model, layout.optimizer.name, layout.tensor_parallel)


@lru_cache(256)
def _state_bytes(model: ModelSection, optimizer: str, tensor_parallel: int) -> float:
    spec = OPTIMIZERS.get(optimizer)
    size = total = 0.0
    for row in (row for row in rows(model) if row.trained):
        elements = row.count * row.local_elements(tensor_parallel)
        size += elements
        total += elements * spec.state_bytes(row.shape, hidden_matrix=row.is_hidden_matrix)
    return total / size


def checkpoint_bytes(model: ModelSection, optimizer: OptimizerSection) -> int:
    """Of a whole checkpoint: fp32 weights and the optimizer's state, of what is trained."""
    state = OPTIMIZERS.get(optimizer.name).state_bytes
    trained = (row for row in rows(model) if row.trained)
    of_weights = (
        row.count * row.elements * (4 + state(row.shape, hidden_matrix=row.is_hidden_matrix)) for row in trained
    )
    return sum(of_weights) + factor_bytes(model, optimizer.name)


@lru_cache(256)
def _hidden(model: ModelSection) -> tuple[ParameterRow, ...]:
    """A row for each kind of them, with its count."""
    return tuple(row for row in rows(model) if row.is_hidden_matrix)


def hidden_elements(model: ModelSection, tensor_parallel: int = 1) -> float:
    return sum(row.count * row.local_elements(tensor_parallel) for row in _hidden(model))


def buffer_bytes(model: ModelSection, layout: Layout, device: str) -> float:
    """At the peak of an exchange: what an owner has received, its results and what it multiplies, or the results that
    it sends and gets; and what travels for the next round meanwhile."""
    hidden = _hidden(model)
    if not exchanges(layout) or not hidden:
        return 0.0
    largest = max(row.elements for row in hidden)
    copies = layout.replicas if layout.zero_stage == 0 else 1  # of each result
    owned = max(hidden_elements(model) / layout.world_size, largest)
    in_round = min(owned, max(ROUND_ELEMENTS / copies, largest))
    side = max(min(row.shape) for row in hidden)
    computing = 2 * in_round + 4 * largest + 2 * side**2
    answering = in_round + (2 if layout.world_size > 1 else 1) * copies * in_round
    ahead = 2 * in_round if in_round < owned else 0
    return _number_bytes(device) * (max(computing, answering) + ahead)


def seconds(model: ModelSection, layout: Layout, hardware: Hardware, link: Link) -> float:
    """Products of the rank that has most of them, and messages that nothing hides.

    Args:
        link: that all ranks share.
    """
    hidden = _hidden(model)
    if not exchanges(layout) or not hidden:
        return 0.0
    each = [_products(row, layout.optimizer, hardware) for row in hidden]
    whole = sum(row.count * one for row, one in zip(hidden, each, strict=True))
    computing = max(whole / layout.world_size, max(each))
    return computing + _travelling(model, layout, hardware, link)


def rewritten_bytes(model: ModelSection, layout: Layout) -> float:
    """Bytes that a rank moves besides, to mix, pack and scale the gradients of what it updates."""
    if not exchanges(layout):
        return 0.0
    owners = layout.replicas if layout.zero_stage >= 1 else 1
    return _REWRITTEN_BYTES * hidden_elements(model, layout.tensor_parallel) / owners


def _products(row: ParameterRow, optimizer: OptimizerSection, hardware: Hardware) -> float:
    """Seconds of the update of one matrix, mostly products of its shorter side with itself."""
    matrices = OPTIMIZERS.get(optimizer.name).matrices
    assert matrices is not None
    lost = math.prod(1 + hardware.matmul_half_size / side for side in (*row.shape, min(row.shape)))
    rate = hardware.tflops("fp32" if hardware.device == "cpu" else "bf16") * 1e12 * hardware.training_efficiency
    return matrices.flops(optimizer, *row.shape) * lost / rate


def sent_bytes(model: ModelSection, layout: Layout, device: str) -> float:
    """That a rank sends in a step, on average, if no owner holds more of a matrix than others: pieces to their owners,
    and results back; without ZeRO, only slices go to owners, and results to every replica."""
    n, t, world = layout.replicas, layout.tensor_parallel, layout.world_size
    hidden = hidden_elements(model)
    if layout.zero_stage == 0:
        numbers = hidden / world * (t - 1) / t + hidden / world * n * (world - 1) / world
    else:
        numbers = 2 * hidden / world * (world - 1) / world
    return _number_bytes(device) * numbers


def _travelling(model: ModelSection, layout: Layout, hardware: Hardware, link: Link) -> float:
    world = layout.world_size
    if world == 1:
        return 0.0
    waiting = 2 * min(world - 1, 2 * world.bit_length()) * link.latency * 1e-6
    return sent_bytes(model, layout, hardware.device) / (link.bandwidth * 1e9) + waiting


def _number_bytes(device: str) -> int:
    return 4 if device == "cpu" else 2
