"""Spans of windows that share rows: their loss, and the likeliest of each.

A window's numbers come with the batch, in the order of its labels (see `FIELDS`). Shapes: E windows, S positions of a
row, L = S positions of a window at most.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megatrain.data.loading.batch import IGNORE_INDEX, Batch

# Of a window, in tokens from its first one: where the answer begins and ends, where its context lies, and its length.
FIELDS = ("number", "start", "end", "context", "behind", "length")


class Windows(NamedTuple):
    """Of a batch.

    Attributes:
        starts, ends: fp32 [E, L], logits of each window's positions; −∞ behind it.
        values: int64 [E, len(FIELDS)].
        is_mine: bool [E]: this context-parallel rank has the window's label, and counts it.
    """

    starts: Tensor
    ends: Tensor
    values: Tensor
    is_mine: Tensor


def windows_of(logits_BSC: Tensor, batch: Batch) -> Windows:
    """
    Args:
        logits_BSC: fp32 [B, S, 2] of whole sequences.
        batch: with labels, whole and this rank's part of them.
    """
    assert batch.whole_labels is not None
    assert batch.example_targets is not None
    values = batch.example_targets.long()
    count, length = len(values), batch.whole_labels.shape[1]
    whole = batch.whole_labels.flatten()
    # the labelled places in order, without waiting for how many they are
    begins = torch.where(whole != IGNORE_INDEX, 0, 1).argsort(stable=True)[:count]
    offsets = torch.arange(length, device=whole.device)
    inside_EL = offsets < values[:, FIELDS.index("length"), None]
    places_EL = (begins[:, None] + offsets).clamp(max=len(whole) - 1)
    picked_ELC = logits_BSC.flatten(0, 1)[places_EL]
    starts, ends = picked_ELC.masked_fill(~inside_EL[..., None], -torch.inf).unbind(-1)
    mine = torch.zeros(count + 1, dtype=torch.bool, device=whole.device)
    labels = batch.labels.flatten()
    mine[labels.where(labels != IGNORE_INDEX, torch.full_like(labels, count))] = True
    return Windows(starts, ends, values, mine[:count])


def span_loss(windows: Windows) -> Tensor:
    """Sum over this rank's windows of the mean of the cross-entropies of start and end, each over the positions of its
    window: as transformers' …ForQuestionAnswering."""
    losses = [
        F.cross_entropy(logits, windows.values[:, FIELDS.index(name)], reduction="none")
        for logits, name in ((windows.starts, "start"), (windows.ends, "end"))
    ]
    return ((losses[0] + losses[1]) / 2 * windows.is_mine).sum()


def best_spans(windows: Windows, longest: int) -> Tensor:
    """Of this rank's windows, fp64 [n, 5]: its number, the first and the last token of the likeliest span within its
    context, the sum of their logits, and that of the first token, which says that there is no answer.

    Args:
        longest: span, in tokens.
    """
    values, length = windows.values, windows.starts.shape[1]
    offsets = torch.arange(length, device=values.device)
    context, behind = (values[:, FIELDS.index(name), None] for name in ("context", "behind"))
    is_context_EL = (offsets >= context) & (offsets < behind)
    starts_EL, ends_EL = (x.masked_fill(~is_context_EL, -torch.inf) for x in (windows.starts, windows.ends))
    longest = min(longest, length)
    ends_ELA = F.pad(ends_EL, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    scores_E, places_E = (starts_EL[..., None] + ends_ELA).flatten(1).max(1)
    first_E, null_E = places_E // longest, windows.starts[:, 0] + windows.ends[:, 0]
    last_E = first_E + places_E % longest
    columns = (values[:, FIELDS.index("number")], first_E, last_E, scores_E, null_E)
    return torch.stack([column.double() for column in columns], 1)[windows.is_mine]
