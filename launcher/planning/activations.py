"""What a model's passes hold on one rank, in bytes, as closed formulas: after arXiv 2205.05198, section 4, for a block
with flash attention and no dropout, and for the ops as this project runs them.

Symbols: T = b·s tokens of a micro-batch, of each sequence a context-parallel rank's part, h hidden size, f intermediate
size, V vocabulary, t tensor-parallel ranks, c bytes of a number in the compute dtype. With sequence parallelism the
norms see T/t of the tokens.
"""

from dataclasses import dataclass

from launcher.planning.blocks import BlockShape, block_shape
from launcher.planning.layout import Layout
from launcher.planning.trained import adapter_widths, head_is_trained, inputs_not_kept
from launcher.planning.zero import number_bytes
from megatrain.config import ModelSection

SOFTCAP_QUERIES = 256  # whose scores attention holds at once where they are capped; kernels/softcap_attention.py
HEAD_CHUNK_TOKENS, COMPILED_HEAD_CHUNK_TOKENS = 1024, 4096  # of the vocabulary projection; kernels/cross_entropy.py


@dataclass(frozen=True, slots=True)
class BlockBytes:
    """Of one block."""

    kept: float  # from the forward pass to the backward
    recomputed: float  # made again in the backward pass
    working: float  # gradients on their way through it


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBytes:
    """The first blocks recompute, the others keep everything."""

    recomputing: BlockBytes
    keeping: BlockBytes
    recomputing_blocks: int
    keeping_blocks: int
    outside: float  # kept around the blocks: by the last norm
    leaving: float  # of inputs of blocks that go to the host, what is still on the device
    arriving: float  # and on their way back
    head_gradients: float  # of the vocabulary projection, made in the forward pass: its weight in fp32, its input
    logits: float  # what a chunk of the projection holds besides
    head_backward: float  # scaling those gradients, and casting them

    @property
    def kept(self) -> float:
        """From the forward pass to the backward."""
        return self.kept_after(0) + self.leaving

    def kept_after(self, done: float) -> float:
        """What is left of it once the backward pass is through so many blocks, the last ones."""
        blocks = self.recomputing_blocks + self.keeping_blocks
        kept = self.keeping.kept * max(0.0, self.keeping_blocks - done)
        kept += self.recomputing.kept * min(self.recomputing_blocks, blocks - done)
        return kept + self.outside * (1 - done / max(1, blocks))

    def in_backward(self, done: float) -> float:
        """What the backward pass of the next block holds, with all that is still kept."""
        keeps = done < self.keeping_blocks
        block, copies = (self.keeping, self.leaving) if keeps else (self.recomputing, self.arriving)
        return self.kept_after(done) + copies + block.recomputed + block.working


@dataclass(frozen=True, slots=True)
class _Widths:
    """Bytes a token of one block's tensors."""

    stream: float  # the residual stream
    whole: float  # what enters or leaves a parallel region
    norm: float  # kept inside a norm, besides its output
    norms: float  # of them in a block
    queries: float
    keys: float  # or values
    statistics: float  # attention's, one fp32 number a head
    mlp_inputs: float  # gate and up, or up alone
    mlp_inside: float  # what the MLP makes of them
    swapped: float  # attention's output once more, as the all-to-all of context parallelism hands it back
    head_norms: float  # kept inside the norms of query and key heads, where there are any

    @property
    def everything(self) -> float:
        """Without recomputation: norms; what enters attention and MLP; q, k, v, attention's output; gate, up,
        silu(gate), product, or up and gelu(up)."""
        attention = 2 * self.queries + 2 * self.keys + self.statistics + self.swapped + self.head_norms
        return self.norms * self.norm + 2 * self.whole + attention + self.mlp_inputs + self.mlp_inside


def activation_bytes(
    model: ModelSection, layout: Layout, *, sequence_length: int, precision: str, device: str, compiled: bool
) -> ActivationBytes:
    T, h, t, c = (
        layout.micro_batch_size * sequence_length / layout.context_parallel,
        model.hidden_size,
        layout.tensor_parallel,
        number_bytes(precision),
    )
    shape = block_shape(model)
    width = _widths(model, shape, layout, c, device=device, compiled=compiled)
    recomputing, keeping = (
        _block(model, width, layout, mode, sequence_length, c, device=device, compiled=compiled)
        for mode in (layout.activation_checkpointing, "none")
    )
    vocabulary = model.head_rows / t
    fused_head = compiled and device != "cpu"
    chunk = min(COMPILED_HEAD_CHUNK_TOKENS if fused_head else HEAD_CHUNK_TOKENS, T)
    per_logit = 2 * c if fused_head else 4 + (c if c == 2 else 0)
    if model.makes_all_logits:
        chunk, per_logit = T, 8 + c
    weight = vocabulary * h if head_is_trained(model) else 0.0
    logits = max(chunk * vocabulary * per_logit, c * (chunk * vocabulary + weight))
    # around the blocks: what norms keep, and what a matrix of the head takes and gives
    outside = shape.outer_norms * width.norm + 2 * shape.outer_matrices * width.stream
    if layout.passes.accumulated > 1:  # embedded tokens, their gradient, and their perturbation in fp32
        outside += width.stream * (2 + 4 / c)
    if layout.passes.copies > 1:  # R-Drop: logits of all labels, their log-probabilities and gradients, in fp32
        logits = max(logits, 6 * 4 * T * model.padded_labels)
    first = model.first_trained_layer  # the blocks before it keep nothing
    offloads, apart = layout.activation_checkpointing == "offload", device != "cpu"
    blocks = max(first, layout.recomputing(model.num_hidden_layers))
    return ActivationBytes(
        recomputing=recomputing,
        keeping=keeping,
        recomputing_blocks=blocks - first,
        keeping_blocks=model.num_hidden_layers - blocks,
        outside=T * outside,
        leaving=T * width.stream if offloads and apart else 0.0,
        arriving=T * width.stream * (2 if apart else 1) if offloads else 0.0,
        head_gradients=4 * weight + T * c * h,
        logits=logits + T * (c * h + width.stream),
        head_backward=(c if c == 2 else 0) * weight + T * c * h,
    )


def _block(
    model: ModelSection, width: _Widths, layout: Layout, mode: str, length: int, c: int, *, device: str, compiled: bool
) -> BlockBytes:
    T = layout.micro_batch_size * length / layout.context_parallel
    adapter = adapter_widths(model, layout)
    inside = c * adapter.inside
    everything = width.everything + inside + c * adapter.elementwise
    everything -= c * inputs_not_kept(model, layout.tensor_parallel)
    selective, useful = _selective(width, layout, compiled)
    kept, still_there = {
        "none": (everything, everything),
        "selective": (selective + c * adapter.made, useful + inside),
        "full": (width.stream, 0.0),
        "offload": (0.0 if device != "cpu" else width.stream, 0.0),
    }[mode]
    if mode != "none":
        still_there += width.stream  # what the first norm keeps is the block's input, which is there
        if device == "cpu" and c == 2 and not compiled and model.norm == "rms":
            # measured: of the fp32 copies of a CPU's norms, one is there for a moment only
            still_there += width.norm / 2
    # measured: gradients of gate and up, less what they have replaced by then
    working = (0.45 if mode == "selective" else 0.9) * width.mlp_inputs
    if layout.passes.dropout and not compiled:  # random bits: three int64 numbers for each channel
        working += 24 * width.stream / c
    if device != "cpu" and model.score_softcap is None:  # the fp32 sum of dq
        working += 4 * model.attention_heads * model.head_size / layout.tensor_parallel
    capped = 0.0 if model.score_softcap is None else _capped_scores(model, layout, length, c)
    return BlockBytes(kept=T * kept, recomputed=T * (everything - still_there), working=T * working + capped)


def _capped_scores(model: ModelSection, layout: Layout, length: int, c: int) -> float:
    """What the backward pass of attention with a soft cap holds (kernels/softcap_attention.py): of a run of queries
    weights, slopes and gradients of all scores in fp32, the last in the compute dtype too; fp32 sums of keys' and
    values' gradients."""
    heads = model.attention_heads / layout.tensor_parallel / layout.context_parallel
    scores = heads * min(SOFTCAP_QUERIES, length) * length
    keys = layout.micro_batch_size * length * model.key_value_heads * model.head_size
    sums = 2 * 4 * keys / layout.tensor_parallel / layout.context_parallel
    return scores * (12 + (c if c == 2 else 0)) + sums


def _widths(model: ModelSection, shape: BlockShape, layout: Layout, c: int, *, device: str, compiled: bool) -> _Widths:
    h, t = model.hidden_size, layout.tensor_parallel
    mlp = c * model.mlp_width / t
    # a compiled block makes silu(gate) again; and, where norms stand behind layers too, the stream between the two
    made_again = (1 if shape.is_gated else 0) if compiled else 0
    norms = shape.norms - 1 if compiled and shape.norms > 2 else shape.norms
    share = 1 / t if layout.sequence_parallel else 1
    heads = (model.attention_heads + model.key_value_heads) / t if model.normalizes_heads else 0.0
    return _Widths(
        stream=c * h * share,
        whole=c * h,
        norm=_norm_bytes(model, h, c, device=device, compiled=compiled) * share,
        norms=norms,
        queries=c * model.attention_heads * model.head_size / t,
        keys=c * model.key_value_heads * model.head_size / t,
        statistics=4 * model.attention_heads / t,
        mlp_inputs=shape.mlp_inputs * mlp,
        mlp_inside=(shape.mlp_inputs - made_again) * mlp,
        swapped=c * model.attention_heads * model.head_size / t if layout.context_parallel > 1 else 0.0,
        head_norms=heads * _norm_bytes(model, model.head_size, c, device=device, compiled=compiled),
    )


def _norm_bytes(model: ModelSection, width: int, c: int, *, device: str, compiled: bool) -> float:
    """What a norm keeps of a row: a fused kernel its input and one or two fp32 numbers; a CPU's ops for RMSNorm, which
    has no such kernel there, the input and the quotient, both in fp32."""
    if model.norm == "layer":
        return c * width + 8
    if compiled:
        return c * width + 4
    if device == "cpu":
        return (8 if model.adapter is None else 4) * width  # only its weight's gradient needs the quotient
    return (4 if model.norm == "fp32 rms" else c) * width + 4


def _selective(width: _Widths, layout: Layout, compiled: bool) -> tuple[float, float]:
    """What is kept, and what of it spares recomputation.

    Kept are the block's input and the results of matmuls, attention and collectives
    (parallel/activation_checkpointing.py). The backward pass uses q and k as they are after the rotation, and the
    results of the row-split matmuls not at all; a compiled block does not keep the last of them.
    """
    useful = width.keys + width.queries + width.statistics + width.mlp_inputs
    kept = width.stream + useful + width.queries + width.keys + (1 if compiled else 2) * width.whole
    if layout.context_parallel > 1:  # results of both all-to-alls; queries, keys and values are copied out of the first
        useful += width.swapped
        kept += width.swapped + width.queries + 2 * width.keys
    if layout.tensor_parallel > 1:
        useful += 2 * width.whole
        kept += 2 * width.whole + (2 * width.stream if layout.sequence_parallel else 0)
    return kept, useful
