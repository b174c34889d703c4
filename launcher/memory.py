"""Bytes on one rank, as closed formulas.

Symbols: Ψ parameters on this rank before ZeRO, n data-parallel ranks, t tensor-parallel ranks, T = b·s tokens of a
micro-batch, h hidden size, f intermediate size, V vocabulary.
"""

from dataclasses import dataclass

from launcher.hardware import GIB, Hardware
from launcher.layout import Layout
from megatrain.config import ModelSection

HEAD_CHUNK_TOKENS = 1024  # the vocabulary projection's chunk; kernels/cross_entropy.py
DEEPSPEED_BUCKET = 500_000_000  # elements; DeepSpeed's default reduce and all-reduce bucket
PREFETCHED = 50_000_000  # elements; DeepSpeed's stage3_prefetch_bucket_size
FRAGMENTATION = 0.05  # of what comes and goes within a step
USABLE = 0.94  # of the device's memory: a plan that needs more does not fit
_PROCESS = {"cuda": 2.0 * GIB, "rocm": 2.0 * GIB, "cpu": 0.7 * GIB}  # context and NCCL buffers; or Python and torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on each rank at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations + self.other

    def to_json(self) -> dict[str, int]:
        parts = ("parameters", "gradients", "optimizer", "activations", "other", "total")
        return {part: getattr(self, part) for part in parts}


def estimate_memory(
    model: ModelSection, layout: Layout, *, sequence_length: int, precision: str, hardware: Hardware
) -> MemoryEstimate:
    """What one rank needs; see `fits`."""
    local = local_parameters(model, layout.tensor_parallel)
    parameters, gradients, optimizer = _state(local, layout, precision)
    activations = _activations(model, layout, sequence_length, precision) + _head(model, layout, precision)
    buffers = _buffers(model, local, layout, precision)
    other = _PROCESS[hardware.device] + buffers + FRAGMENTATION * (activations + buffers)
    return MemoryEstimate(
        parameters=round(parameters),
        gradients=round(gradients),
        optimizer=round(optimizer),
        activations=round(activations),
        other=round(other),
    )


def fits(memory: MemoryEstimate, hardware: Hardware) -> bool:
    return memory.total <= USABLE * hardware.memory_bytes


def local_parameters(model: ModelSection, tensor_parallel: int) -> float:
    """Ψ: the matrices are split over the tensor-parallel ranks, the norms are on each."""
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    return (model.parameters - norms) / tensor_parallel + norms


def _state(local: float, layout: Layout, precision: str) -> tuple[float, float, float]:
    """Parameters, gradients, optimizer.

    Adam in mixed precision is 16 bytes a parameter (ZeRO, arXiv 1910.02054, section 3.1): 2 + 2 in bf16, and 12 in
    fp32 for the master copy and both moments. Here gradients are summed in fp32 (4 bytes) wherever ZeRO runs.
    In fp32 the parameters are their own master copy only without ZeRO.
    """
    n, stage = layout.data_parallel, layout.zero_stage
    size = 2 if precision == "bf16" else 4
    sums = size if stage == 0 else 4
    master = 0 if (stage == 0 and precision == "fp32") else 4
    return (
        local * size / (n if stage == 3 else 1),
        local * sums / (n if stage >= 2 else 1),
        local * (master + 8) / (n if stage >= 1 else 1),
    )


def _activations(model: ModelSection, layout: Layout, sequence_length: int, precision: str) -> float:
    """What the forward pass keeps for the backward, and one block's gradients on the way back.

    After arXiv 2205.05198, section 4, for a Llama block with flash attention and no dropout. In elements a token:
    the residual stream and the norms' outputs 4h; query, key, value, attention's output; gate, up and their product 3f.
    """
    h, t = model.hidden_size, layout.tensor_parallel
    attention = 2 * model.head_size * (model.num_attention_heads + model.key_value_heads)
    mlp = model.intermediate_size
    stream = h / t if layout.sequence_parallel else h  # the residual stream; what enters a column-split matmul is whole
    everything = 2 * stream + 2 * h + (attention + 3 * mlp) / t
    reduced = 2 * stream if t > 1 else 0  # the collectives' results are kept as well
    kept = {
        "none": everything,
        "selective": stream + 2 * h + reduced + (attention + 2 * mlp) / t,
        "full": stream,
    }[layout.activation_checkpointing]
    tokens = layout.micro_batch_size * sequence_length
    working = everything / 2 + (everything - kept)  # gradients on their way, and what is made again of one block
    return tokens * (2 if precision == "bf16" else 4) * (model.num_hidden_layers * kept + working)


def _head(model: ModelSection, layout: Layout, precision: str) -> float:
    """The chunked vocabulary projection: a chunk's logits (fp32, their gradient in the compute dtype), the gradient of
    its input, and that of its weight, summed in fp32 and then cast."""
    size = 2 if precision == "bf16" else 4
    slice_of_vocabulary = model.padded_vocab_size / layout.tensor_parallel
    logits = HEAD_CHUNK_TOKENS * slice_of_vocabulary * (4 + 4 + size)
    return logits + slice_of_vocabulary * model.hidden_size * (4 + size)


def _buffers(model: ModelSection, local: float, layout: Layout, precision: str) -> float:
    """What DeepSpeed allocates around a step: buckets, and ZeRO-3's gathered and prefetched parameters."""
    if layout.data_parallel == 1:
        return 0.0
    size = 2 if precision == "bf16" else 4
    bucket = min(DEEPSPEED_BUCKET, local)
    if layout.zero_stage < 2:
        return bucket * (4 + size)  # the flattened bucket, and its copy in the type it travels in
    if layout.zero_stage == 2:
        return bucket * size
    block = (local - model.padded_vocab_size * model.hidden_size / layout.tensor_parallel) / model.num_hidden_layers
    largest = max(block, model.padded_vocab_size * model.hidden_size / layout.tensor_parallel)
    return (bucket + min(PREFETCHED, local) + 2 * largest) * size
