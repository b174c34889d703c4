"""A flat range of a row-major tensor as a few boxes.

A ZeRO rank owns a flat range of each parameter; a checkpoint wants rectangles. At most 2·ndim - 1 of them cover any
range: a ragged start, whole rows, a ragged end, and so on inwards. Pure arithmetic; no torch.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of a tensor, and where its elements lie in the flat range that it came from."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    flat_start: int  # in the whole tensor's row-major order
    numel: int


def boxes(shape: Sequence[int], start: int, numel: int, *, limit: int) -> list[Box]:
    """Boxes that together hold exactly elements [start, start + numel) of a tensor, in flat order.

    Args:
        limit: most elements of a box. A reader loads a box as a whole, so a cap bounds its memory. A box of one row
            may exceed it only where the row itself is not divided further (one dimension: never).

    Raises:
        ValueError: the range does not lie within the tensor.
    """
    if start < 0 or numel < 0 or start + numel > math.prod(shape):
        raise ValueError(f"range [{start}, {start + numel}) is not within a tensor of shape {tuple(shape)}")
    if not shape:
        return [Box((), (), 0, 1)] if numel else []
    return list(_boxes(tuple(shape), start, numel, limit))


def _boxes(shape: tuple[int, ...], start: int, numel: int, limit: int) -> Iterator[Box]:
    row, inner = math.prod(shape[1:]), shape[1:]
    at, end = start, start + numel
    while at < end:
        index, within = divmod(at, row)
        whole_rows = (end - at) // row
        if within == 0 and whole_rows and row <= limit:
            rows = min(whole_rows, limit // row)
            yield Box((index, *(0 for _ in inner)), (rows, *inner), at, rows * row)
            at += rows * row
        else:
            piece = min(row - within, end - at)
            for box in _boxes(inner, within, piece, limit):
                yield Box((index, *box.offsets), (1, *box.sizes), index * row + box.flat_start, box.numel)
            at += piece
