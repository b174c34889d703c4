"""Every range of every small shape."""

import itertools
import math

import pytest

from megatrain.checkpoint.chunks import chunks_of

SHAPES = [
    *itertools.product(range(1, 6), repeat=1),
    *itertools.product(range(1, 5), repeat=2),
    *itertools.product(range(1, 4), repeat=3),
    (2, 3, 2, 3),
    (3, 1, 2, 2),
]
NO_LIMIT = 10**9


def ranges(shape):
    size = math.prod(shape)
    return ((start, numel) for start in range(size + 1) for numel in range(size - start + 1))


def elements(chunk, shape):
    """The flat indices of a chunk's elements, in the chunk's own row-major order."""
    axes = [range(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True)]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return [sum(i * stride for i, stride in zip(index, strides, strict=True)) for index in itertools.product(*axes)]


@pytest.mark.parametrize("limit", [1, 2, 5, NO_LIMIT])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_hold_exactly_the_range_in_flat_order(shape, limit) -> None:
    for start, numel in ranges(shape):
        found = chunks_of(shape, start, numel, limit=limit)
        covered = [index for chunk in found for index in elements(chunk, shape)]
        assert covered == list(range(start, start + numel)), (start, numel)
        for chunk in found:
            assert all(o + s <= n for o, s, n in zip(chunk.offsets, chunk.sizes, shape, strict=True))
            assert chunk.numel == math.prod(chunk.sizes) <= limit
            assert chunk.flat_start == elements(chunk, shape)[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_are_needed(shape) -> None:
    for start, numel in ranges(shape):
        assert len(chunks_of(shape, start, numel, limit=NO_LIMIT)) <= 2 * len(shape) - 1


def test_a_limit_costs_few_boxes_more() -> None:
    assert len(chunks_of((1000, 64), 0, 64_000, limit=640)) == 100


def test_a_scalar() -> None:
    (chunk,) = chunks_of((), 0, 1, limit=1)
    assert (chunk.offsets, chunk.sizes, chunk.flat_start, chunk.numel) == ((), (), 0, 1)
    assert chunks_of((), 0, 0, limit=1) == []


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0, 3)], ids=str)
def test_a_range_outside_the_tensor_is_refused(shape) -> None:
    size = math.prod(shape)
    for start, numel in [(-1, 1), (0, size + 1), (size, 1), (0, -1)]:
        with pytest.raises(ValueError, match="not within a tensor of shape"):
            chunks_of(shape, start, numel, limit=NO_LIMIT)
