"""A flat range of a row-major tensor as a few chunks, DCP's word for rectangles of a tensor.

A ZeRO rank owns a flat range of each parameter. At most 2·ndim - 1 chunks cover any range: a ragged start, whole rows,
a ragged end, and so on inwards. Pure arithmetic; no torch.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Chunk(NamedTuple):
    """A rectangle of a tensor, and where its elements lie in the flat range that it came from."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    flat_start: int  # in the whole tensor's row-major order
    numel: int


def chunks_of(shape: Sequence[int], start: int, numel: int, *, limit: int) -> list[Chunk]:
    """Chunks that together hold exactly elements [start, start + numel) of a tensor, in flat order.

    Args:
        limit: most elements of a chunk. A reader loads a chunk as a whole, so a cap bounds its memory. A chunk of one
            row may exceed it only where the row itself is not divided further (one dimension: never).

    Raises:
        ValueError: the range does not lie within the tensor.
    """
    if start < 0 or numel < 0 or start + numel > math.prod(shape):
        raise ValueError(f"range [{start}, {start + numel}) is not within a tensor of shape {tuple(shape)}")
    if not shape:
        return [Chunk((), (), 0, 1)] if numel else []
    return list(_chunks(tuple(shape), start, numel, limit))


def _chunks(shape: tuple[int, ...], start: int, numel: int, limit: int) -> Iterator[Chunk]:
    row, inner = math.prod(shape[1:]), shape[1:]
    at, end = start, start + numel
    while at < end:
        index, within = divmod(at, row)
        whole_rows = (end - at) // row
        if within == 0 and whole_rows and row <= limit:
            rows = min(whole_rows, limit // row)
            yield Chunk((index, *(0 for _ in inner)), (rows, *inner), at, rows * row)
            at += rows * row
        else:
            piece = min(row - within, end - at)
            for chunk in _chunks(inner, within, piece, limit):
                yield Chunk((index, *chunk.offsets), (1, *chunk.sizes), index * row + chunk.flat_start, chunk.numel)
            at += piece
