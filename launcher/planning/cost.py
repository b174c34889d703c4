"""Seconds of one optimizer step, as closed formulas. How far to trust them is said in docs/planning.md.

Symbols: T tokens of a micro-batch on a rank, S sequence, h hidden size, f intermediate size, t tensor-parallel ranks, x
context-parallel ranks, n replicas, Ψ parameters on a rank before ZeRO, c bytes of a number in the compute dtype, a
micro-batches of a step.
"""

import math
from dataclasses import dataclass

from launcher.planning import factors
from launcher.planning.activation_offload import exposed_seconds
from launcher.planning.activations import COMPILED_HEAD_CHUNK_TOKENS, HEAD_CHUNK_TOKENS
from launcher.planning.blocks import block_shape
from launcher.planning.data_parallel import data_parallel_seconds, reduces_early
from launcher.planning.hardware import Hardware, Host
from launcher.planning.layout import Layout
from launcher.planning.matrices import rewritten_bytes, seconds, state_bytes
from launcher.planning.offload import copied_bytes, host_moved_bytes
from launcher.planning.trained import adapter_widths, head_is_trained, trained_layers, trained_parameters
from launcher.planning.zero import number_bytes
from megatrain.config.training import storage_precision
from megatrain.model.architecture import ModelSection, rows
from megatrain.model.fp8 import multiplies_in_fp8

ATTENTION_RATE = 0.55  # flash attention over a large matmul: 300-550 of 794 on an H100 (arXiv 2407.08608, fig. 5)
ATTENTION_BACKWARD = 2.5  # backward over forward: five matmuls for two (arXiv 2307.08691, section 3.1)
FP8_ROUNDING_BYTES = 5  # per element of an operand: read for its scale, read again, and written
# A third of what both passes read and write to draw a channel's random bits, op by op: kernels/keyed_random.py
DROPOUT_BYTES = 150
CAPPED_SCORE_BYTES = 60  # read and written for a score with a soft cap, op by op: kernels/softcap_attention.py
MEMORY_RATE = 0.9  # elementwise kernels over the memory's bandwidth
_NORM_AND_CLIP_BYTES = 12  # a parameter of the part that a rank updates: fp32 gradients read, and scaled
_UPDATE_BYTES = 14  # per parameter: reads a gradient, reads and writes the weight in fp32, writes it in bf16
READ_TOKENS_A_SECOND = 136e6  # the loader's one thread, measured; it works behind the step
# Host work a parameter tensor and step, over a plain loop, in seconds: 75 tensors, measured (ms 51, 60, 66, 102 of 49).
HOST_SECONDS = {0: 0.03e-3, 1: 0.15e-3, 2: 0.23e-3, 3: 0.7e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step, by what they go to. Communication and data count where nothing hides them."""

    compute: float
    tensor_parallel: float
    context_parallel: float
    data_parallel: float
    data: float
    optimizer: float
    offload: float = 0.0  # activations to the host and back

    @property
    def total(self) -> float:
        parallel = self.tensor_parallel + self.context_parallel + self.data_parallel
        return self.compute + parallel + self.data + self.optimizer + self.offload

    def to_json(self) -> dict[str, float]:
        parts = ["compute", "tensor_parallel", "context_parallel", "data_parallel", "data", "optimizer"]
        parts += ["offload", "total"] if self.offload else ["total"]
        return {part: round(getattr(self, part), 6) for part in parts}


def estimate_step(
    model: ModelSection,
    layout: Layout,
    *,
    sequence_length: int,
    precision: str,
    ranks_per_node: int,
    hardware: Hardware,
    compiled: bool = True,
) -> StepTime:
    """The time of a step of `micro_batch_size × gradient_accumulation_steps` sequences on every data-parallel rank."""
    tokens = layout.gradient_accumulation_steps * layout.micro_batch_size * sequence_length
    layout = layout.with_passes
    accumulation = layout.gradient_accumulation_steps
    compute = accumulation * _micro_batch(model, layout, sequence_length, precision, hardware, compiled)
    offload = accumulation * _offload(model, layout, sequence_length, precision, hardware, compiled)
    precision = storage_precision(precision)  # of all that is not a product
    tensor = accumulation * _tensor_parallel(model, layout, sequence_length, precision, ranks_per_node, hardware)
    context = accumulation * _context_parallel(model, layout, sequence_length, precision, ranks_per_node, hardware)
    data_parallel = data_parallel_seconds(model, layout, precision, ranks_per_node, hardware, compute)
    link = hardware.link if layout.world_size <= ranks_per_node else hardware.network
    optimizer = _optimizer(model, layout, precision, hardware) + seconds(model, layout, hardware, link)
    optimizer += factors.seconds(model, layout, link)
    busy = compute + tensor + context + data_parallel + optimizer + offload
    return StepTime(
        compute=compute,
        tensor_parallel=tensor,
        context_parallel=context,
        data_parallel=data_parallel,
        data=max(0.0, tokens / READ_TOKENS_A_SECOND - busy),
        optimizer=optimizer,
        offload=offload,
    )


def local_tokens(layout: Layout, sequence_length: int) -> float:
    """Tokens of a micro-batch that pass through one rank."""
    return layout.micro_batch_size * sequence_length / layout.context_parallel


def model_flops_utilization(
    model: ModelSection, *, sequence_length: int, tokens_per_second_per_gpu: float, hardware: Hardware
) -> float:
    """MFU as we count it: 6·N_matmul and attention (6·L·H·S if causal) per token, over the dense bf16 peak."""
    flops = model.flops_per_token(sequence_length) * tokens_per_second_per_gpu
    return flops / (hardware.peak_tflops * 1e12)


@dataclass(frozen=True, slots=True)
class BlockTime:
    """Seconds of one forward pass through a block, by kind."""

    matmuls: float
    last_matmul: float  # of these, the one that nothing behind it in the block needs
    attention: float
    elementwise: float
    frozen_matmuls: float = 0.0  # of these, whose weight has no gradient

    @property
    def forward(self) -> float:
        return self.matmuls + self.attention + self.elementwise

    @property
    def backward(self) -> float:
        return 2 * self.matmuls - self.frozen_matmuls + ATTENTION_BACKWARD * self.attention + 2 * self.elementwise

    def again(self, recompute: str) -> float:
        """What a recomputing backward pass adds (parallel/activation_checkpointing.py)."""
        whole = self.forward - self.last_matmul
        return {"none": 0.0, "selective": self.elementwise, "full": whole, "offload": whole}[recompute]


def _micro_batch(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, hardware: Hardware, compiled: bool
) -> float:
    """Forward and backward of one micro-batch on one rank."""
    block = block_time(model, layout, sequence_length, precision, hardware, compiled)
    T = local_tokens(layout, sequence_length)
    head = _head(model, layout, T, storage_precision(precision), hardware, compiled)
    recomputing = max(0, layout.recomputing(model.num_hidden_layers) - model.first_trained_layer)
    again = recomputing * block.again(layout.activation_checkpointing)
    return model.num_hidden_layers * block.forward + trained_layers(model) * block.backward + again + head


def _offload(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, hardware: Hardware, compiled: bool
) -> float:
    """Of a micro-batch: what computation does not hide."""
    if layout.activation_checkpointing != "offload":
        return 0.0
    block = block_time(model, layout, sequence_length, precision, hardware, compiled)
    return exposed_seconds(
        model,
        layout,
        sequence_length=sequence_length,
        precision=storage_precision(precision),
        hardware=hardware,
        forward=block.forward,
        backward=block.backward + block.again("offload"),
    )


def _head(model: ModelSection, layout: Layout, T: float, precision: str, hardware: Hardware, compiled: bool) -> float:
    """The vocabulary projection and its loss, forward and backward at once (kernels/cross_entropy.py)."""
    vocabulary, c = model.head_rows / layout.tensor_parallel, number_bytes(precision)
    fused = compiled and hardware.device != "cpu"
    chunk = COMPILED_HEAD_CHUNK_TOKENS if fused else HEAD_CHUNK_TOKENS
    logit = 4 * c if fused else 44  # read for the maximum, for the sum and for the gradient, which is written; or by op
    # each chunk's product is written, and added to the weight's gradient in fp32; that is scaled and rounded at the end
    weight = (2 * c + 8) * math.ceil(T / chunk) + 8 + 4 + c if head_is_trained(model) else 0.0
    moved = vocabulary * (T * logit + model.hidden_size * weight)
    products = 3 if head_is_trained(model) else 2
    return products * _matmul(T, model.hidden_size, vocabulary, precision, hardware) + _moving(moved, hardware)


def _moving(size: float, hardware: Hardware) -> float:
    """Seconds in which elementwise ops read and write so many bytes."""
    return size / (MEMORY_RATE * hardware.memory_bandwidth * 1e9)


def block_time(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, hardware: Hardware, compiled: bool
) -> BlockTime:
    h, f, t = model.hidden_size, model.mlp_width / layout.tensor_parallel, layout.tensor_parallel
    T = local_tokens(layout, sequence_length)
    queries, keys = model.attention_heads * model.head_size / t, model.key_value_heads * model.head_size / t
    last = model.num_hidden_layers - 1  # it is trained, if any is
    matrices = [row for row in rows(model) if row.layers is not None and last in row.layers and len(row.shape) == 2]
    stored = storage_precision(precision)
    rate = hardware.tflops(stored) * 1e12 * hardware.training_efficiency
    seen = model.seen(sequence_length) / model.num_hidden_layers  # causal: half of the sequence
    shape = block_shape(model)
    # elements that elementwise ops read and write a token: residuals and norms, rotation (in fp32), activation
    rotation = (2 if compiled else 20) * (queries + keys) if shape.rotates else 0.0
    stream = 2 * h + 2 * shape.norms * h if compiled else 6 * h + 3 * shape.norms * h
    activation = (1 + shape.mlp_inputs) * f if compiled else (5 if shape.is_gated else 2) * f
    adapter = adapter_widths(model, layout)
    moved = stream + rotation + activation + (1 if compiled else 3) * (adapter.made + adapter.elementwise)
    drawn = 2 * h * DROPOUT_BYTES if layout.passes.dropout and not compiled else 0.0
    products, rounded, frozen = [], 0.0, 0.0  # seconds; elements of fp8 operands; seconds
    for row in matrices:
        n, k = row.local_shape(t)
        in_fp8 = precision == "fp8" and multiplies_in_fp8(row, t)
        products.append(_matmul(T, k, n, precision if in_fp8 else stored, hardware))
        frozen += 0.0 if row.trained else products[-1]
        rounded += (T * k + k * n) * in_fp8
    capped = T * seen * model.attention_heads / t * CAPPED_SCORE_BYTES if model.score_softcap is not None else 0.0
    return BlockTime(
        matmuls=sum(products),
        last_matmul=next(one for one, row in zip(products[::-1], matrices[::-1], strict=True) if not row.of_adapter),
        attention=4 * T * seen * queries / (rate * ATTENTION_RATE),
        elementwise=_moving(
            T * (number_bytes(stored) * moved + drawn) + FP8_ROUNDING_BYTES * rounded + capped, hardware
        ),
        frozen_matmuls=frozen,
    )


def _matmul(m: float, k: float, n: float, precision: str, hardware: Hardware) -> float:
    """Seconds of an [m, k] × [k, n] product: a dimension of `matmul_half_size` alone halves the rate, since tiles and
    waves are not filled."""
    lost = 1.0
    for dimension in (m, k, n):
        lost *= 1 + hardware.matmul_half_size / dimension
    return 2 * m * k * n * lost / (hardware.tflops(precision) * 1e12 * hardware.training_efficiency)


def _tensor_parallel(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, ranks_per_node: int, hardware: Hardware
) -> float:
    """Exposed: `tensor_parallel_bytes`, and the latency of the collectives."""
    t = layout.tensor_parallel
    if t == 1:
        return 0.0
    link = hardware.link if t <= ranks_per_node else hardware.network
    waiting = _tensor_parallel_collectives(model, layout) * (t - 1) * link.latency * 1e-6
    return tensor_parallel_bytes(model, layout, sequence_length, precision) / (link.bandwidth * 1e9) + waiting


def tensor_parallel_bytes(model: ModelSection, layout: Layout, sequence_length: int, precision: str) -> float:
    """Bytes that a rank sends to the other slices in a micro-batch, in rings: 8·c·T·h·(t-1)/t a layer, in four pairs of
    a gather and a scatter (arXiv 2205.05198), or four all-reduces of as many bytes (arXiv 1909.08053)."""
    t = layout.tensor_parallel
    payload = local_tokens(layout, sequence_length) * model.hidden_size * number_bytes(precision)
    return _tensor_parallel_collectives(model, layout) * payload * (t - 1) / t


def _tensor_parallel_collectives(model: ModelSection, layout: Layout) -> int:
    """Gathers and scatters of a whole activation: into and out of attention and MLP, in both passes; out of the
    embedding, and into the head. Recomputing makes them again, up to the last one of a block, which is not needed."""
    again = 3 * layout.recomputing(model.num_hidden_layers) if layout.recomputes_all else 0
    return 8 * model.num_hidden_layers + again + 4


def _context_parallel(
    model: ModelSection, layout: Layout, sequence_length: int, precision: str, ranks_per_node: int, hardware: Hardware
) -> float:
    """Exposed: two all-to-alls a layer and pass, of q, k and v and of attention's output (arXiv 2309.14509)."""
    t, x = layout.tensor_parallel, layout.context_parallel
    if x == 1:
        return 0.0
    link = hardware.link if t * x <= ranks_per_node else hardware.network
    width = 2 * (model.attention_heads + model.key_value_heads) * model.head_size / t
    payload = local_tokens(layout, sequence_length) * width * number_bytes(precision)
    again = layout.recomputing(model.num_hidden_layers) if layout.recomputes_all else 0
    one = payload * (x - 1) / x / (link.bandwidth * 1e9) + 2 * (x - 1) * link.latency * 1e-6
    return (2 * model.num_hidden_layers + again) * one


def _optimizer(model: ModelSection, layout: Layout, precision: str, hardware: Hardware) -> float:
    """Memory that is moved to sum and send gradients, then to update. Then the host's share, which an accelerator hides
    behind its queue and a CPU rank pays."""
    owners = layout.replicas if layout.zero_stage >= 1 else 1
    update = (_UPDATE_BYTES + 2 * state_bytes(model, layout) + _NORM_AND_CLIP_BYTES) / owners
    elsewhere = 0.0
    if layout.offload_optimizer == "cpu" and hardware.host is not None:
        elsewhere, update = _on_the_host(model, layout, precision, hardware.host), 4 / owners  # the norm
    each = gradient_bytes(layout, precision) + update
    host = HOST_SECONDS[layout.zero_stage] * block_shape(model).tensors
    moved = each * trained_parameters(model, layout.tensor_parallel) + rewritten_bytes(model, layout)
    moved += factors.rewritten_bytes(model, layout)
    return _moving(moved, hardware) + elsewhere + (host if hardware.device == "cpu" else 0.0)


def _on_the_host(model: ModelSection, layout: Layout, precision: str, host: Host) -> float:
    """Copies and the update, one after the other, as if nothing hid a copy."""
    copying = copied_bytes(model, layout, precision) / (host.link * 1e9)
    return copying + host_moved_bytes(model, layout) / (host.memory_bandwidth * 1e9)


def gradient_bytes(layout: Layout, precision: str) -> float:
    """Bytes per parameter of a rank that a step reads and writes of gradients, from where autograd has made them to
    where they are reduced; without a collective's own. Counted by op, in bf16 (tests/train/test_traffic.py)."""
    a, c = layout.gradient_accumulation_steps, number_bytes(precision)
    added = 3 * c * (a - 1)  # autograd adds to a gradient of an earlier micro-batch
    bucketed = 6 * c  # copied into a bucket, divided, and copied out of it
    if layout.zero_stage == 0:  # in bf16 DeepSpeed copies them to fp32, and looks through them; and see `Engine`
        return added + bucketed + (28 if precision == "bf16" else 0)
    if layout.zero_stage == 1:  # in bf16, added to sums in fp32, which are reduced in place
        if reduces_early(layout, precision):
            return 10 * a - 4
        return added + bucketed if precision == "fp32" else 10 * a + 24  # summed, and bucketed, in fp32
    # twice a micro-batch, put together from the ranks' parts
    gathered = 4 * c if layout.zero_stage == 3 and layout.replicas > 1 else 0
    return (bucketed + gathered) * a
