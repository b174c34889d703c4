"""Seconds of one optimizer step, as closed formulas. How far to trust them is said in docs/planning.md.

Symbols as in memory.py. Matmul FLOPs over a rate that falls for small shapes, attention, bytes through memory,
collectives, and the host's work; megatrain turns on no overlap of communication in ZeRO-0, 1 and 2.
"""

from dataclasses import dataclass

from launcher.hardware import Hardware, Link
from launcher.layout import Layout
from launcher.memory import local_parameters
from megatrain.config import ModelSection

ATTENTION_RATE = 0.65  # flash attention, forward and backward, over a large matmul's rate (FlashAttention-3, fig. 5)
HALF_RATE_SIZE = 100  # a matmul with one dimension of this size runs at half its rate: tiles and waves are not filled
ZERO3_OVERLAP = 0.6  # the share of ZeRO-3's traffic that prefetching hides, at most
# Host work a parameter tensor and step, over a plain loop, in seconds: 75 tensors, measured (ms 51, 60, 66, 102 of 49).
HOST_SECONDS = {0: 0.03e-3, 1: 0.15e-3, 2: 0.23e-3, 3: 0.7e-3}
TENSORS_A_LAYER = 9
_RECOMPUTED = {"none": 0.0, "selective": 0.02, "full": 1.0}  # forward passes that are made again


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step, by what they go to."""

    compute: float
    tensor_parallel: float
    data_parallel: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.compute + self.tensor_parallel + self.data_parallel + self.optimizer

    def to_json(self) -> dict[str, float]:
        parts = ("compute", "tensor_parallel", "data_parallel", "optimizer", "total")
        return {part: round(getattr(self, part), 6) for part in parts}


def estimate_step(
    model: ModelSection,
    layout: Layout,
    *,
    sequence_length: int,
    precision: str,
    ranks_per_node: int,
    hardware: Hardware,
) -> StepTime:
    """The time of a step of `micro_batch_size × gradient_accumulation_steps` sequences on every data-parallel rank."""
    micro = _micro_batch(model, layout, sequence_length, precision, hardware)
    tensor = _tensor_parallel(model, layout, sequence_length, precision, ranks_per_node, hardware)
    accumulation = layout.gradient_accumulation_steps
    compute = accumulation * micro
    return StepTime(
        compute=compute,
        tensor_parallel=accumulation * tensor,
        data_parallel=_data_parallel(model, layout, precision, ranks_per_node, hardware, compute),
        optimizer=_optimizer(model, layout, hardware),
    )


def model_flops_utilization(
    model: ModelSection, *, sequence_length: int, tokens_per_second_per_gpu: float, hardware: Hardware
) -> float:
    """MFU as this project counts it: 6·N_matmul + 6·L·H·S a token (causal), over the dense bf16 peak."""
    flops = model.flops_per_token(sequence_length) * tokens_per_second_per_gpu
    return flops / (hardware.peak_tflops * 1e12)


def _micro_batch(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, hardware: Hardware
) -> float:
    """Forward and backward of one micro-batch on one rank."""
    T, h, f, t = (
        layout.micro_batch_size * sequence_length,
        model.hidden_size,
        model.intermediate_size,
        layout.tensor_parallel,
    )
    rate = hardware.tflops(precision) * 1e12 * hardware.training_efficiency
    queries, keys = model.num_attention_heads * model.head_size / t, model.key_value_heads * model.head_size / t
    shapes = [(h, queries + 2 * keys), (queries, h), (h, 2 * f / t), (f / t, h)]
    forward = sum(_matmul(T, k, n) for k, n in shapes) / rate
    forward += 2 * T * sequence_length * queries / (rate * ATTENTION_RATE)  # causal: half of 4·T·S·H
    size = 2 if precision == "bf16" else 4
    moved = (
        T * size * (8 * h + (4 * (queries + keys) + 5 * f / t))
    )  # elementwise work reads and writes each about twice
    forward += moved / (0.9 * hardware.memory_bandwidth * 1e9)
    passes = 3 + _RECOMPUTED[layout.activation_checkpointing]
    head = 3 * _matmul(T, h, model.padded_vocab_size / t) / rate
    return model.num_hidden_layers * forward * passes + head


def _matmul(m: float, k: float, n: float) -> float:
    """FLOPs of an [m, k] × [k, n] product, blown up by what its shape loses."""
    lost = 1.0
    for dimension in (m, k, n):
        lost *= 1 + HALF_RATE_SIZE / dimension
    return 2 * m * k * n * lost


def _tensor_parallel(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, ranks_per_node: int, hardware: Hardware
) -> float:
    """Exposed: 16·T·h·(t-1)/t bytes a layer in bf16, in four collectives (arXiv 1909.08053; with sequence parallelism
    the same bytes, arXiv 2205.05198), half as much again where the forward pass is made again."""
    t = layout.tensor_parallel
    if t == 1:
        return 0.0
    size = 2 if precision == "bf16" else 4
    link = hardware.link if t <= ranks_per_node else hardware.network
    payload = layout.micro_batch_size * sequence_length * model.hidden_size * size
    again = 1.5 if layout.activation_checkpointing == "full" else 1.0
    one = 2 * payload * (t - 1) / t / (link.bandwidth * 1e9) + 2 * (t - 1) * link.latency * 1e-6
    return (model.num_hidden_layers * 4 * again + 3) * one


def _data_parallel(
    model: ModelSection,
    layout: Layout,
    precision: str,
    ranks_per_node: int,
    hardware: Hardware,
    compute: float,
) -> float:
    """Bytes a rank and step, in units of Ψ × 2 in bf16: all-reduce 2, reduce-scatter 1, all-gather 1 (ZeRO, section 7).

    ZeRO-0 all-reduces. ZeRO-1 all-reduces, then gathers. ZeRO-2 scatters at each micro-batch and gathers once. ZeRO-3
    gathers twice and scatters once at each micro-batch, partly behind the computation.
    """
    n, t, accumulation = layout.data_parallel, layout.tensor_parallel, layout.gradient_accumulation_steps
    if n == 1:
        return 0.0
    size = 2 if precision == "bf16" else 4
    local_ranks = max(1, ranks_per_node // t)
    crosses = n > local_ranks
    bandwidth = (
        min(hardware.link.bandwidth, hardware.network.bandwidth * local_ranks) if crosses else hardware.link.bandwidth
    )
    link = Link(bandwidth=bandwidth, latency=(hardware.network if crosses else hardware.link).latency)
    units = {0: 2, 1: 3, 2: accumulation + 1, 3: 3 * accumulation}[layout.zero_stage]
    messages = {0: 2, 1: 3, 2: accumulation + 1, 3: 3 * accumulation * model.num_hidden_layers}[layout.zero_stage]
    traffic = units * local_parameters(model, t) * size * (n - 1) / n / (link.bandwidth * 1e9)
    waiting = messages * min(n - 1, 2 * n.bit_length()) * link.latency * 1e-6  # a ring, or a tree when that is shorter
    if layout.zero_stage < 3:
        return traffic + waiting
    return max((1 - ZERO3_OVERLAP) * traffic, traffic - ZERO3_OVERLAP * compute) + waiting


def _optimizer(model: ModelSection, layout: Layout, hardware: Hardware) -> float:
    """Adam reads the gradient, and reads and writes three fp32 numbers a parameter: about 30 bytes. Then the host's
    share, which an accelerator hides behind its queue and a CPU rank pays."""
    owners = layout.data_parallel if layout.zero_stage >= 1 else 1
    seconds = 30 * local_parameters(model, layout.tensor_parallel) / owners / (0.9 * hardware.memory_bandwidth * 1e9)
    host = HOST_SECONDS[layout.zero_stage] * (TENSORS_A_LAYER * model.num_hidden_layers + 3)
    return seconds + (host if hardware.device == "cpu" else 0.0)
