"""Activations on the host: what full recomputation keeps, a block's input, in pinned memory there
(megatrain/parallel/activation_offload.py). Symbols as in activations.py and cost.py.
"""

from launcher.planning.hardware import Hardware
from launcher.planning.layout import Layout
from launcher.planning.zero import number_bytes
from megatrain.model.architecture import ModelSection

_MOVED_ON_ONE_MEMORY = 4  # a copy there and one back, each read and written


def offloaded_blocks(model: ModelSection, layout: Layout) -> int:
    """Those that recompute; without a backward pass none."""
    if layout.activation_checkpointing != "offload":
        return 0
    return max(0, layout.recomputing(model.num_hidden_layers) - model.first_trained_layer)


def input_bytes(model: ModelSection, layout: Layout, sequence_length: int, precision: str) -> float:
    """Of one block, on one rank: its part of the residual stream."""
    tokens = layout.micro_batch_size * sequence_length / layout.context_parallel
    share = layout.tensor_parallel if layout.sequence_parallel else 1
    return tokens * model.hidden_size * number_bytes(precision) / share


def pinned_bytes(model: ModelSection, layout: Layout, sequence_length: int, precision: str) -> float:
    """Of a rank's host: a buffer a block, which torch rounds up to a power of two."""
    size = round(input_bytes(model, layout, sequence_length, precision))
    return float(offloaded_blocks(model, layout) * (1 << (size - 1).bit_length()))


def exposed_seconds(
    model: ModelSection,
    layout: Layout,
    *,
    sequence_length: int,
    precision: str,
    hardware: Hardware,
    forward: float,
    backward: float,
) -> float:
    """Of a micro-batch: a copy to the host that takes longer than its block's forward pass, and one back that takes
    longer than the backward pass of the block behind it.

    Args:
        forward: seconds of one block.
        backward: likewise, recomputation included.
    """
    blocks, size = offloaded_blocks(model, layout), input_bytes(model, layout, sequence_length, precision)
    if hardware.host is None:
        return blocks * _MOVED_ON_ONE_MEMORY * size / (hardware.memory_bandwidth * 1e9)
    copy = size / (hardware.host.link * 1e9)
    return blocks * (max(0.0, copy - forward) + max(0.0, copy - backward))
