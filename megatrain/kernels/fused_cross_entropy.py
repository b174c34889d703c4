"""The softmax and cross-entropy of a chunk of logits in Triton: two reads and one write of them, nothing beside them.

    vocabulary_statistics    of each token the maximum, the sum of exponentials and the label's logit, in one pass
                             (online softmax, arXiv 1805.02867)
    vocabulary_gradient      d loss / d logits, in the place of the logits

Between the two stand numbers of a token each, which slices of a vocabulary agree on by the reductions of
`cross_entropy.py`; the formulas are those there. Numbers are fp32 in registers, whatever the logits are in. With
TRITON_INTERPRET=1 both run on a CPU, where they are tested.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatrain.kernels.cross_entropy import (
    IGNORE_INDEX,
    LossTerms,
    Projection,
    VocabSlice,
    over_slices,
    token_losses,
)

BLOCK = 4096  # columns at a time, at most
WARPS = 8
_IGNORED = tl.constexpr(IGNORE_INDEX)


@triton.jit
def _capped(x, softcap):  # type: ignore[no-untyped-def]
    """c·tanh(x / c), by the exponential function: it is in every version of Triton, and in its interpreter."""
    return softcap * (1.0 - 2.0 / (tl.exp(2.0 * x / softcap) + 1.0))


@triton.jit
def statistics_kernel(  # type: ignore[no-untyped-def]
    logits, labels, out, rows, stride, start, real, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """A row each. `out` is [4, rows]: maximum, Σ exp(logit − maximum), the label's logit, Σ logits.

    Args:
        start: the first column's row of the whole vocabulary.
        real: columns that stand for something, the first ones; may be 0 or less.
    """
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row) - start
    maximum = -float("inf")
    total = 0.0
    target = 0.0
    logit_sum = 0.0
    for begin in range(0, real, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        here = columns < real
        x = tl.load(logits + row * stride + columns, mask=here, other=0.0).to(tl.float32)
        if CAPPED:
            x = _capped(x, softcap)
        target += tl.sum(tl.where(here & (columns == label), x, 0.0))
        logit_sum += tl.sum(tl.where(here, x, 0.0))
        x = tl.where(here, x, -float("inf"))
        larger = tl.maximum(maximum, tl.max(x))  # finite: a block has a column that is here
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(x - larger))
        maximum = larger
    tl.store(out + row, maximum)
    tl.store(out + rows + row, total)
    tl.store(out + 2 * rows + row, target)
    tl.store(out + 3 * rows + row, logit_sum)


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    logits,
    labels,
    maximum,
    factor,
    stride,
    width,
    start,
    real,
    softcap,
    at_label,
    everywhere,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row each: exp(logit − maximum) · factor, less `at_label` at the label and `everywhere` at all that
    stand for something; of a row without a label nothing."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    here = columns < real
    label = tl.load(labels + row)
    places = logits + row * stride + columns
    x = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    slope = 1.0
    if CAPPED:
        x = _capped(x, softcap)
        slope = 1.0 - (x / softcap) * (x / softcap)
    gradient = tl.exp(x - tl.load(maximum + row)) * tl.load(factor + row)
    gradient -= tl.where(columns == label - start, at_label, 0.0)
    gradient = (gradient - everywhere) * slope
    gradient = tl.where(here & (label != _IGNORED), gradient, 0.0)
    tl.store(places, gradient.to(logits.dtype.element_ty), mask=inside)


@torch.library.custom_op("megatrain::vocabulary_statistics", mutates_args=())
def vocabulary_statistics(logits_nV: Tensor, labels_n: Tensor, start: int, real: int, softcap: float | None) -> Tensor:
    """fp32 [4, n]; see `statistics_kernel`. The logits are not yet capped, and their rows lie one behind the other."""
    rows, width = logits_nV.shape
    out = torch.empty(4, rows, dtype=torch.float32, device=logits_nV.device)
    statistics_kernel[(rows,)](
        logits_nV,
        labels_n,
        out,
        rows,
        logits_nV.stride(0),
        start,
        real,
        softcap or 1.0,
        CAPPED=softcap is not None,
        BLOCK=_block(width),
        num_warps=WARPS,
    )
    return out


@vocabulary_statistics.register_fake
def _(logits_nV: Tensor, labels_n: Tensor, start: int, real: int, softcap: float | None) -> Tensor:
    return logits_nV.new_empty(4, logits_nV.shape[0], dtype=torch.float32)


@torch.library.custom_op("megatrain::vocabulary_gradient", mutates_args=("logits_nV",))
def vocabulary_gradient(
    logits_nV: Tensor,
    labels_n: Tensor,
    maximum_n: Tensor,
    factor_n: Tensor,
    start: int,
    real: int,
    softcap: float | None,
    at_label: float,
    everywhere: float,
) -> None:
    """In the place of the logits; see `gradient_kernel`."""
    rows, width = logits_nV.shape
    block = _block(width)
    gradient_kernel[(rows, triton.cdiv(width, block))](
        logits_nV,
        labels_n,
        maximum_n,
        factor_n,
        logits_nV.stride(0),
        width,
        start,
        real,
        softcap or 1.0,
        at_label,
        everywhere,
        CAPPED=softcap is not None,
        BLOCK=block,
        num_warps=WARPS,
    )


@vocabulary_gradient.register_fake
def _(
    logits_nV: Tensor,
    labels_n: Tensor,
    maximum_n: Tensor,
    factor_n: Tensor,
    start: int,
    real: int,
    softcap: float | None,
    at_label: float,
    everywhere: float,
) -> None:
    return None


def loss_and_grad(
    hidden_nD: Tensor, projection: Projection, labels_n: Tensor, vocab: VocabSlice | None, terms: LossTerms
) -> tuple[Tensor, Tensor]:
    """As `cross_entropy._loss_and_grad`: [loss, cross-entropy] of a chunk, and the gradient of its logits, which lies
    where these did."""
    logits_nV = projection.logits(hidden_nD).contiguous()
    labels_n = labels_n.contiguous()
    width, start = logits_nV.shape[1], vocab.start if vocab else 0
    real = width if projection.classes is None else max(0, min(width, projection.classes - start))
    softcap = projection.softcap
    local_maximum_n, sum_n, target_n, logit_sum_n = vocabulary_statistics(
        logits_nV, labels_n, start, real, softcap
    ).unbind()
    maximum_n = vocab.reduce(local_maximum_n.clone(), "max") if vocab else local_maximum_n
    counted_n = labels_n != IGNORE_INDEX
    here_n = counted_n & (labels_n >= start) & (labels_n < start + real)
    # less the maximum, as the formulas want them
    sum_n = sum_n * (local_maximum_n - maximum_n).exp()
    target_n = (target_n - maximum_n).where(here_n, 0.0)
    of_all_n = logit_sum_n - real * maximum_n if terms.label_smoothing else None
    sum_n, target_n, of_all_n = over_slices(sum_n, target_n, of_all_n, vocab)
    losses, softmax_factor_n, everywhere = token_losses(
        sum_n, target_n, of_all_n, maximum_n, counted_n, terms, projection.size(vocab)
    )
    factor_n = softmax_factor_n / sum_n
    at_label = 1.0 - terms.label_smoothing
    vocabulary_gradient(
        logits_nV, labels_n, maximum_n.contiguous(), factor_n, start, real, softcap, at_label, everywhere
    )
    return losses, logits_nV


def _block(width: int) -> int:
    return min(BLOCK, max(16, triton.next_power_of_2(width)))
