"""Whether chunks cover a tensor: each element once."""

import math
from typing import Any

import numpy as np

MOST_DIMENSIONS = 8


def covers_exactly(shape: tuple[int, ...], offsets: list[Any], sizes: list[Any]) -> bool:
    """Whether chunks of these offsets and sizes cover a tensor of this shape, each element once.

    A chunk is determined by its corners, each with the sign of an inclusion-exclusion sum; where chunks meet, corners
    cancel. So the cover is exact if and only if the tensor's own corners are all that is left: n log n, where comparing
    chunks with each other takes n².
    """
    if not shape:
        return offsets == [()] == sizes
    if not all(are_integers(chunk) and len(chunk) == len(shape) for chunk in (*offsets, *sizes)):
        return False
    try:
        starts, lengths = np.array(offsets), np.array(sizes)
    except ValueError:  # sequences of several lengths
        return False
    if starts.shape != (len(offsets), len(shape)) or not offsets:
        return False
    if starts.dtype != np.int64 or lengths.dtype != np.int64 or lengths.shape != starts.shape:
        return False
    whole = np.array(shape, dtype=np.int64)
    if (starts < 0).any() or (lengths < 1).any() or (lengths > whole).any() or (starts > whole - lengths).any():
        return False
    strides = np.array([math.prod(size + 1 for size in shape[dim + 1 :]) for dim in range(len(shape))], dtype=np.int64)
    mine, signs = _corners(starts, lengths, strides)
    theirs, their_signs = _corners(np.zeros((1, len(shape)), dtype=np.int64), whole[None], strides)
    places, inverse = np.unique(np.concatenate([mine, theirs]), return_inverse=True)
    sums = np.bincount(inverse, weights=np.concatenate([signs, -their_signs]), minlength=len(places))
    return not sums.any()


def _corners(starts: Any, lengths: Any, strides: Any) -> tuple[Any, Any]:
    """The flat positions of all corners of chunks, and their signs."""
    positions, signs = np.zeros((len(starts), 1), dtype=np.int64), np.ones(1)
    for dim, stride in enumerate(strides):
        near, far = starts[:, dim, None] * stride, (starts[:, dim, None] + lengths[:, dim, None]) * stride
        positions = np.concatenate([positions + near, positions + far], axis=1)
        signs = np.concatenate([signs, -signs])
    return positions.ravel(), np.tile(signs, len(starts))


def are_integers(value: Any) -> bool:
    """Whether it is a tuple of at most as many integers as a tensor has dimensions."""
    return type(value) is tuple and len(value) <= MOST_DIMENSIONS and all(type(number) is int for number in value)
