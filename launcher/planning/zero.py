"""What DeepSpeed holds of a model under each ZeRO stage, and for how long: bytes on one rank, as closed formulas.

Read in DeepSpeed 0.19.8 and measured (docs/planning.md). Which of its optimizers runs follows from stage and precision:

    stage  bf16                      fp32
    0      FP16_UnfusedOptimizer     torch's own
    1      BF16_Optimizer (as        DeepSpeedZeroOptimizer
           changed in train/zero1.py)
    2      DeepSpeedZeroOptimizer    DeepSpeedZeroOptimizer
    3      DeepSpeedZeroOptimizer_Stage3

Symbols: Ψ trained parameters on this rank before ZeRO, n ranks that hold the same ones (data- and context-parallel), c
bytes of a number in the compute dtype. Frozen parameters have neither gradients nor state nor an fp32 copy, and only
ZeRO-3 partitions them.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from launcher.planning.layout import Layout
from launcher.planning.matrices import state_bytes
from launcher.planning.trained import (
    head_is_trained,
    largest_trained,
    trained_embedding,
    trained_layers,
    trained_of_block,
    trained_parameters,
)
from megatrain.model.architecture import ModelSection, rows

# Elements. DeepSpeed's own size, but a part of a small model: it allocates the buckets whole.
REDUCE_BUCKET = 500_000_000
_BUCKETS_A_MODEL = 4
LIVE_PARAMETERS = 1_000_000_000  # elements: DeepSpeed's own limit to what ZeRO-3 keeps gathered
_PREFETCHED_BLOCKS = 1.1  # a block is gathered as one: what is less than the next block hides nothing of it
_LIVE_BLOCKS = 3  # the one that is computed, the one that is gathered, and one that the backward pass will start with
_MASTER = 4  # bytes of an fp32 weight; Adam's moments are 8 more (ZeRO, arXiv 1910.02054, section 3.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroBytes:
    """Bytes on one rank. The first four stand all the time, the others for a part of a step."""

    parameters: float
    gradients: float  # buffers that are there between steps too
    optimizer: float
    buckets: float = 0.0
    gathered: float = 0.0  # whole parameters, while a forward or backward pass runs
    held: float = 0.0  # gradients of earlier micro-batches of a step
    made: float = 0.0  # gradients at the end of a backward pass, the held ones included
    in_forward: float = 0.0  # buckets
    in_backward: float = 0.0  # buckets
    late_in_backward: float = 0.0  # buckets, and what they were emptied into
    late_after: int = 0  # blocks, from the last one down, whose gradients go into the first bucket
    reducing: float = 0.0  # copies at the end of a backward pass
    stepping: float = 0.0  # copies, and gradients that are still there, while the optimizer runs
    starting: float = 0.0  # beyond what stands later, at the peak of the start

    @property
    def standing(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.buckets


@lru_cache(256)
def local_parameters(model: ModelSection, tensor_parallel: int) -> float:
    """Ψ: what the parameter table splits is divided over the tensor-parallel ranks, the rest is on each."""
    split = sum(row.count * row.elements for row in rows(model) if row.split is not None)
    return split / tensor_parallel + (model.parameters - split)


def number_bytes(precision: str) -> int:
    return 2 if precision == "bf16" else 4


@lru_cache(256)
def largest_parameter(model: ModelSection, tensor_parallel: int) -> float:
    """Elements of the largest tensor on a rank."""
    return max(row.local_elements(tensor_parallel) for row in rows(model))


@lru_cache(256)
def embedding_parameters(model: ModelSection, tensor_parallel: int) -> float:
    """Elements of the embedding of the vocabulary, as many as of the head, on a rank."""
    return model.padded_vocab_size * model.hidden_size / tensor_parallel


def block_parameters(model: ModelSection, tensor_parallel: int) -> float:
    """Elements of one block on a rank."""
    embedding = embedding_parameters(model, tensor_parallel)
    head = 0.0 if model.ties_head else model.head_rows * model.hidden_size / tensor_parallel
    blocks = local_parameters(model, tensor_parallel) - embedding - head
    return blocks / model.num_hidden_layers


def reduce_bucket(model: ModelSection, tensor_parallel: int, zero_stage: int) -> int:
    """Elements; a gradient that is larger than the bucket would be reduced on its own, from a copy."""
    psi = trained_parameters(model, tensor_parallel)
    bucket = min(REDUCE_BUCKET, max(psi / _BUCKETS_A_MODEL, largest_trained(model, tensor_parallel)))
    return round(max(bucket, _trained_of_block(model, tensor_parallel)) if zero_stage == 3 else bucket)


def _trained_of_block(model: ModelSection, tensor_parallel: int) -> float:
    of_block = trained_of_block if model.freezes else block_parameters
    return of_block(model, tensor_parallel)


def zero_bytes(model: ModelSection, layout: Layout, precision: str) -> ZeroBytes:
    training = _training(model, layout, precision)
    return replace(training, starting=_starting(training, model, layout, number_bytes(precision)))


def _starting(training: ZeroBytes, model: ModelSection, layout: Layout, c: int) -> float:
    """Peaks are where DeepSpeed takes the weights over, and where the optimizer makes its state from zero gradients."""
    psi, n = trained_parameters(model, layout.tensor_parallel), layout.replicas
    if layout.zero_stage == 0:
        return (6 if c == 2 else 4) * psi
    if layout.zero_stage == 3:  # each parameter is gathered once, to attach hooks to it, before there are moments
        gathering = c * largest_parameter(model, layout.tensor_parallel) - 8 * psi / n
        return max(4 * psi / n, gathering) + second_copy(model, layout, c)
    joining = 2 * c * psi  # all parameters into one tensor
    return max(4 * psi / n, joining - training.standing)


def _training(model: ModelSection, layout: Layout, precision: str) -> ZeroBytes:
    trained = _of_trained(model, layout, precision)
    frozen = local_parameters(model, layout.tensor_parallel) - trained_parameters(model, layout.tensor_parallel)
    share = layout.replicas if layout.zero_stage == 3 else 1
    return replace(trained, parameters=trained.parameters + number_bytes(precision) * frozen / share)


def _of_trained(model: ModelSection, layout: Layout, precision: str) -> ZeroBytes:
    """Without what frozen parameters take between steps."""
    psi, n, c = trained_parameters(model, layout.tensor_parallel), layout.replicas, number_bytes(precision)
    bucket = c * reduce_bucket(model, layout.tensor_parallel, layout.zero_stage)
    largest = largest_trained(model, layout.tensor_parallel)
    again = layout.gradient_accumulation_steps > 1
    if layout.zero_stage == 0:
        return _unpartitioned(psi, state_bytes(model, layout), c, again, largest)
    if layout.zero_stage == 3:
        return _stage_3(model, layout, psi, n, c, bucket)
    if layout.zero_stage == 1 and precision == "bf16":
        return ZeroBytes(
            parameters=2 * psi,
            gradients=4 * psi,  # the fp32 sums, whole on every rank, reduced in place
            optimizer=(_MASTER + state_bytes(model, layout)) * psi / n,
            reducing=2 * trained_embedding(model, layout.tensor_parallel),  # its gradient, the last that is made
        )
    partition = 4 * psi / n
    if layout.zero_stage == 1:  # in fp32: whole gradients until the last micro-batch
        return ZeroBytes(
            parameters=4 * psi,
            gradients=0,
            optimizer=(_MASTER + state_bytes(model, layout)) * psi / n,
            held=4 * psi if again else 0,
            made=4 * psi,
            in_forward=bucket if again else 0,
            in_backward=bucket,
            late_in_backward=bucket,
            reducing=partition,  # a gradient in the bucket is no longer anywhere else
            stepping=2 * partition,  # flattened anew
        )
    reduced = c * psi / n  # gradients of this rank's partition, as they arrive; in bf16, summed in fp32 at the end
    return ZeroBytes(
        parameters=c * psi,
        gradients=0,
        optimizer=(_MASTER + state_bytes(model, layout)) * psi / n,
        held=partition if again else 0,
        made=partition if again or c == 2 else 0,
        in_backward=bucket,
        late_in_backward=bucket + reduced,
        late_after=_blocks_of_a_bucket(model, layout.tensor_parallel),
        reducing=bucket + reduced + (4 * largest if c == 2 else 0),
        # in bf16 the norm is taken in fp64, a tensor at a time; in fp32 the partition is flattened anew
        stepping=partition + (8 * min(largest, psi / n) if c == 2 else partition),
    )


def _blocks_of_a_bucket(model: ModelSection, tensor_parallel: int) -> int:
    if not trained_layers(model):
        return 0
    head = embedding_parameters(model, tensor_parallel) if head_is_trained(model) else 0.0
    block = _trained_of_block(model, tensor_parallel)
    blocks = math.floor((reduce_bucket(model, tensor_parallel, 2) - head) / block)
    return min(trained_layers(model), max(0, blocks))


def _unpartitioned(psi: float, state: float, c: int, again: bool, largest: float) -> ZeroBytes:
    """In bf16 the optimizer copies the gradients to fp32; in fp32 the parameters are their own master copy."""
    return ZeroBytes(
        parameters=c * psi,
        gradients=0,
        optimizer=(_MASTER + state if c == 2 else state) * psi,
        held=c * psi if again else 0,
        made=c * psi,
        reducing=c * min(REDUCE_BUCKET, psi),
        stepping=6 * psi if c == 2 else 4 * psi + 4 * largest,
    )


def prefetch_bucket(model: ModelSection, tensor_parallel: int) -> int:
    """Elements that ZeRO-3 gathers ahead."""
    return round(_PREFETCHED_BLOCKS * block_parameters(model, tensor_parallel))


def live_parameters(model: ModelSection, tensor_parallel: int) -> int:
    """Elements that ZeRO-3 keeps gathered, at most."""
    return max(LIVE_PARAMETERS, round(_LIVE_BLOCKS * block_parameters(model, tensor_parallel)))


def reuse_distance(model: ModelSection, tensor_parallel: int) -> int:
    """Elements between two uses of a parameter for which ZeRO-3 keeps it: of a large model the last block only."""
    if not releases_weights(model, tensor_parallel):
        return LIVE_PARAMETERS
    return round(block_parameters(model, tensor_parallel))


def first_and_embedding(model: ModelSection, tensor_parallel: int) -> float:
    """Elements of the first block and the embedding: the last whose gradients are made."""
    if model.freezes:
        return trained_embedding(model, tensor_parallel) + trained_of_block(model, tensor_parallel)
    return embedding_parameters(model, tensor_parallel) + block_parameters(model, tensor_parallel)


def second_copy(model: ModelSection, layout: Layout, c: int) -> float:
    """Bytes of this rank's part of a node's copy of the weights (hpz.py). A weight's is made when it is released first
    in a step, and forgotten at its end."""
    size = layout.zero_hpz_partition_size
    return c * local_parameters(model, layout.tensor_parallel) / size if size > 1 else 0.0


def releases_weights(model: ModelSection, tensor_parallel: int) -> bool:
    """Whether ZeRO-3 lets weights go before the end of a step."""
    return local_parameters(model, tensor_parallel) > LIVE_PARAMETERS


def _stage_3(model: ModelSection, layout: Layout, psi: float, n: int, c: int, bucket: float) -> ZeroBytes:
    part, whole = (of(model, layout.tensor_parallel) for of in (first_and_embedding, local_parameters))
    copy = second_copy(model, layout, c)
    in_passes = copy if releases_weights(model, layout.tensor_parallel) else 0.0
    return ZeroBytes(
        parameters=c * psi / n,
        gradients=4 * psi / n,
        optimizer=(_MASTER + state_bytes(model, layout)) * psi / n,
        buckets=bucket,
        gathered=in_passes + (c * min(live_parameters(model, layout.tensor_parallel), whole) if n > 1 else 0),
        in_forward=c * prefetch_bucket(model, layout.tensor_parallel) if n > 1 else 0,
        reducing=bucket + c * part if n > 1 else bucket + 4 * bucket / c,
        stepping=4 * psi / n + copy,
    )
