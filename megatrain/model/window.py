"""Which positions of its document a position attends to, without torch: a window, by FlashAttention's convention.

    (left, right)   how many positions before and behind it are seen, besides itself; -1: all there are

A model has one for all its layers, or a pattern of local and global layers.
"""

from collections.abc import Sequence
from typing import Literal

Window = tuple[int, int]
LayerType = Literal["sliding_attention", "full_attention"]  # as transformers calls them

CAUSAL: Window = (-1, 0)
BIDIRECTIONAL: Window = (-1, -1)


def causal_window(size: int) -> Window:
    """The last `size` positions, itself among them: `sliding_window` of Mistral (arXiv 2310.06825, section 2)."""
    return (size - 1, 0)


def effective(window: Window, sequence_length: int) -> Window:
    """The same in sequences of this length, with -1 for a side that hides nothing there."""
    left, right = (-1 if side >= sequence_length - 1 else side for side in window)
    return (left, right)


def positions_seen(window: Window, sequence_length: int) -> float:
    """The mean over a sequence's positions, a half for the causal triangle: S/2 for `CAUSAL`, S for `BIDIRECTIONAL`.

    Of a side that reaches over w positions the first w of a sequence see fewer: w − w²/2S on average.
    """
    sides = (sequence_length if side < 0 else min(side, sequence_length) for side in window)
    return sum(side - side * side / (2 * sequence_length) for side in sides)


def windows_of(types: Sequence[LayerType], local: Window, everywhere: Window, layers: int) -> tuple[Window, ...]:
    """Of each layer, by a pattern of types that begins again after its last."""
    return tuple(local if types[layer % len(types)] == "sliding_attention" else everywhere for layer in range(layers))
