"""What replicas send each other in a step, and the seconds of it that nothing hides. Symbols as in cost.py."""

from dataclasses import dataclass

from launcher.planning.hardware import Hardware, Link
from launcher.planning.layout import Layout
from launcher.planning.trained import trained_parameters
from launcher.planning.zero import local_parameters, number_bytes
from megatrain.model.architecture import ModelSection

OVERLAP = 0.6  # the share that computation hides, at most: of ZeRO-3's traffic, and of ZeRO-1's reduction in bf16


def data_parallel_seconds(
    model: ModelSection, layout: Layout, precision: str, ranks_per_node: int, hardware: Hardware, compute: float
) -> float:
    """Exposed. What nothing hides of `data_parallel_bytes`, over the link; and the messages' latency."""
    n, t, accumulation = layout.replicas, layout.tensor_parallel, layout.gradient_accumulation_steps
    if n == 1:
        return 0.0
    link = data_parallel_link(n, max(1, ranks_per_node // t), hardware)
    stage = layout.zero_stage
    sent = data_parallel_bytes(model, layout, precision)
    traffic = (sent.reduce + sent.gather) / (link.bandwidth * 1e9) + sent.near / (hardware.link.bandwidth * 1e9)
    messages = {0: 2, 1: 3, 2: 2 * accumulation + 1, 3: 3 * accumulation * model.num_hidden_layers}[stage]
    near, size = 0, layout.zero_hpz_partition_size
    if size > 1:
        near = (2 * accumulation - 1) * model.num_hidden_layers
    waiting = (messages - near) * _hops(n) * link.latency * 1e-6 + near * _hops(size) * hardware.link.latency * 1e-6
    if stage == 3:
        hidden = min(OVERLAP * traffic, OVERLAP * compute)
    elif reduces_early(layout, precision) and hardware.device != "cpu":  # in the last micro-batch's backward pass
        reducing = sent.reduce / (link.bandwidth * 1e9)
        hidden = OVERLAP * min(reducing, 2 / 3 * compute / accumulation)
    else:
        hidden = 0.0
    return traffic - hidden + waiting


def _hops(ranks: int) -> int:
    """Of a message through a ring, or a tree when that is shorter."""
    return min(ranks - 1, 2 * ranks.bit_length())


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelBytes:
    """Bytes that each rank of a group of replicas sends in a step, in rings: (n-1)/n of a tensor for a reduce-scatter
    or an all-gather, twice that for an all-reduce."""

    reduce: float
    gather: float
    near: float = 0.0  # gathered within a node (hpz.py)

    @property
    def total(self) -> float:
        return self.reduce + self.gather + self.near


def data_parallel_bytes(model: ModelSection, layout: Layout, precision: str) -> DataParallelBytes:
    """By what DeepSpeed does at each stage (seen under torch's fake process group: tests/train/test_traffic.py).

    ZeRO-0 all-reduces gradients. ZeRO-1 reduce-scatters them in bf16 runs, in fp32, and all-reduces them in fp32 runs;
    then it gathers weights. ZeRO-2 all-reduces in each micro-batch, and gathers once. ZeRO-3 scatters once and gathers
    twice in each micro-batch, with hpZ all but the first time within a node.
    """
    n, a, c = layout.replicas, layout.gradient_accumulation_steps, number_bytes(precision)
    scattered = 4 if reduces_early(layout, precision) else 8  # all-reduced, in fp32
    reduced = {0: 2 * c, 1: scattered, 2: 2 * c * a, 3: c * a}[layout.zero_stage]
    gathered = {0: 0, 1: c, 2: c, 3: 2 * c * a}[layout.zero_stage]
    ring = trained_parameters(model, layout.tensor_parallel) * (n - 1) / n
    whole = local_parameters(model, layout.tensor_parallel) * (n - 1) / n
    if layout.zero_stage < 3:
        return DataParallelBytes(reduce=reduced * ring, gather=gathered * ring)
    size = layout.zero_hpz_partition_size
    if size == 1:
        return DataParallelBytes(reduce=reduced * ring, gather=gathered * whole)
    in_node = local_parameters(model, layout.tensor_parallel) * (size - 1) / size
    return DataParallelBytes(reduce=reduced * ring, gather=c * whole, near=c * (2 * a - 1) * in_node)


def reduces_early(layout: Layout, precision: str) -> bool:
    """Whether fp32 sums are scattered in the last backward pass (train/zero1.py)."""
    return layout.zero_stage == 1 and precision == "bf16" and layout.offload_optimizer == "none"


def data_parallel_link(ranks: int, ranks_in_node: int, hardware: Hardware) -> Link:
    """What a collective over `ranks` sees: within a node its link; across, all adapters of a node side by side."""
    if ranks <= ranks_in_node:
        return hardware.link
    bandwidth = min(hardware.link.bandwidth, hardware.network.bandwidth * ranks_in_node)
    return Link(bandwidth=bandwidth, latency=hardware.network.latency)
