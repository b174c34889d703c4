"""What a model's passes hold on one rank, in bytes, as closed formulas: after arXiv 2205.05198, section 4, for a Llama
block with flash attention and no dropout, and for the ops as this project runs them.

Symbols: T = b·s tokens of a micro-batch, of each sequence a context-parallel rank's part, h hidden size, f intermediate
size, V vocabulary, t tensor-parallel ranks, c bytes of a number in the compute dtype. With sequence parallelism the
norms see T/t of the tokens.
"""

from dataclasses import dataclass

from launcher.planning.layout import Layout
from launcher.planning.zero import number_bytes
from megatrain.config import ModelSection

HEAD_CHUNK_TOKENS, COMPILED_HEAD_CHUNK_TOKENS = 1024, 4096  # of the vocabulary projection; kernels/cross_entropy.py


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBytes:
    kept: float  # by all blocks and the last norm, from the forward pass to the backward
    recomputed: float  # of one block, made again in the backward pass
    working: float  # gradients on their way through a block
    head_gradients: float  # of the vocabulary projection, made in the forward pass: its weight in fp32, its input
    logits: float  # what a chunk of the projection holds besides
    head_backward: float  # scaling those gradients, and casting them


@dataclass(frozen=True, slots=True)
class _Widths:
    """Bytes a token of one block's tensors."""

    stream: float  # the residual stream
    whole: float  # what enters or leaves a parallel region
    norm: float  # kept inside a norm, besides its output
    queries: float
    keys: float  # or values
    statistics: float  # attention's, one fp32 number a head
    mlp: float
    swapped: float  # attention's output once more, as the all-to-all of context parallelism hands it back
    head_norms: float  # kept inside the norms of query and key heads, where there are any

    @property
    def everything(self) -> float:
        """Without recomputation: norms, their outputs; q, k, v, attention's output; gate, up, silu(gate), product."""
        attention = 2 * self.queries + 2 * self.keys + self.statistics + self.swapped + self.head_norms
        return 2 * (self.norm + self.whole) + attention + 4 * self.mlp


def activation_bytes(
    model: ModelSection, layout: Layout, *, sequence_length: int, precision: str, device: str, compiled: bool
) -> ActivationBytes:
    T, h, t, c = (
        layout.micro_batch_size * sequence_length / layout.context_parallel,
        model.hidden_size,
        layout.tensor_parallel,
        number_bytes(precision),
    )
    width = _widths(model, layout, c, fused_norm=compiled or device != "cpu")
    everything = width.everything - (width.mlp if compiled else 0)  # a compiled block makes silu(gate) again
    kept, still_there = {
        "none": (everything, everything),
        "selective": _selective(width, layout, compiled),
        "full": (width.stream, 0.0),
    }[layout.activation_checkpointing]
    if layout.activation_checkpointing != "none":
        still_there += width.stream  # what the first norm keeps is the block's input, which is there
        if device == "cpu" and c == 2 and not compiled:
            still_there += (
                width.norm / 2
            )  # measured: of the fp32 copies of a CPU's norms, one is there for a moment only
    # measured: gradients of gate and up, less what they have replaced by then
    working = {"none": 1.8, "selective": 0.9, "full": 1.8}[layout.activation_checkpointing] * width.mlp
    vocabulary = model.head_rows / t
    fused_head = compiled and device != "cpu"
    chunk = min(COMPILED_HEAD_CHUNK_TOKENS if fused_head else HEAD_CHUNK_TOKENS, T)
    weight = vocabulary * h
    per_logit = 2 * c if fused_head else 4 + (c if c == 2 else 0)
    logits = max(chunk * vocabulary * per_logit, c * (chunk * vocabulary + weight))
    flash = 4 * model.attention_heads * model.head_size / t if device != "cpu" else 0  # the fp32 sum of dq
    return ActivationBytes(
        kept=T * (model.num_hidden_layers * kept + width.norm),
        recomputed=T * (everything - still_there),
        working=T * (working + flash),
        head_gradients=4 * weight + T * c * h,
        logits=logits + T * (c * h + width.stream),
        head_backward=(c if c == 2 else 0) * weight + T * c * h,
    )


def _widths(model: ModelSection, layout: Layout, c: int, *, fused_norm: bool) -> _Widths:
    h, t = model.hidden_size, layout.tensor_parallel
    share = 1 / t if layout.sequence_parallel else 1
    heads = (model.attention_heads + model.key_value_heads) / t if model.normalizes_heads else 0.0
    return _Widths(
        stream=c * h * share,
        whole=c * h,
        # a fused kernel keeps its input and one number per row; a CPU's ops the input and the quotient, both in fp32
        norm=(c * h + 4 if fused_norm else 8 * h) * share,
        queries=c * model.attention_heads * model.head_size / t,
        keys=c * model.key_value_heads * model.head_size / t,
        statistics=4 * model.attention_heads / t,
        mlp=c * model.mlp_width / t,
        swapped=c * model.attention_heads * model.head_size / t if layout.context_parallel > 1 else 0.0,
        head_norms=heads * (c * model.head_size + 4 if fused_norm else 8 * model.head_size),
    )


def _selective(width: _Widths, layout: Layout, compiled: bool) -> tuple[float, float]:
    """What is kept, and what of it spares recomputation.

    Kept are the block's input and the results of matmuls, attention and collectives
    (parallel/activation_checkpointing.py). The backward pass uses q and k as they are after the rotation, and the
    results of the row-split matmuls not at all; a compiled block does not keep the last of them.
    """
    useful = width.keys + width.queries + width.statistics + 2 * width.mlp
    kept = width.stream + useful + width.queries + width.keys + (1 if compiled else 2) * width.whole
    if layout.context_parallel > 1:  # results of both all-to-alls; queries, keys and values are copied out of the first
        useful += width.swapped
        kept += width.swapped + width.queries + 2 * width.keys
    if layout.tensor_parallel > 1:
        useful += 2 * width.whole
        kept += 2 * width.whole + (2 * width.stream if layout.sequence_parallel else 0)
    return kept, useful
