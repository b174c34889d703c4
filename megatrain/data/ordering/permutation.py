"""Keyed permutations of 0..n-1 that can be evaluated anywhere, at no cost in memory.

Our own arithmetic on 64-bit integers: NumPy's generators may change between versions, and the order of a run's data
must not. Golden vectors in the tests pin every function here; whoever changes one raises `order.ORDER_VERSION`.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
UInt16 = NDArray[np.uint16]

# A Feistel network over a small domain is visibly regular: below this, sort hashes instead.
EXPLICIT_BELOW = 1 << 16
_HALF_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64


def mix64(x: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4096)
def key(*parts: int | np.integer) -> np.uint64:
    """One 64-bit key from whole numbers, in their order: seed, purpose, epoch and the like."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = mix64((state ^ np.uint64(int(part) % 2**64)) + _GOLDEN)
    return np.uint64(state[0])


def permute(index: Int64, length: int, permutation_key: np.uint64) -> Int64:
    """int64 [N] within 0..length-1 -> int64 [N], a bijection of 0..length-1 chosen by the key."""
    if length < EXPLICIT_BELOW:
        return explicit_permutation(length, permutation_key)[index].astype(np.int64)
    bits = (length - 1).bit_length()
    permuted = _feistel(index.astype(np.uint64), bits, permutation_key)
    # Cycle walking: whoever leaves the range is permuted again until it is back. 2^bits < 2·length: half return a turn.
    outside = np.flatnonzero(permuted >= length)
    while outside.size:
        permuted[outside] = _feistel(permuted[outside], bits, permutation_key)
        outside = outside[permuted[outside] >= length]
    return permuted.astype(np.int64)


@lru_cache(maxsize=256)
def explicit_permutation(length: int, permutation_key: np.uint64) -> UInt16:
    """All of a permutation, uint16 [length] (read-only): 0..length-1 sorted by a keyed hash."""
    permutation = explicit_permutations(1, length, permutation_key)[0]
    permutation.setflags(write=False)
    return permutation


def explicit_permutations(count: int, length: int, permutation_key: np.uint64) -> UInt16:
    """`count` permutations of 0..length-1, uint16 [count, length], each sorted by its own stretch of one keyed hash."""
    assert length <= EXPLICIT_BELOW, "an index beyond 16 bits"
    hashes = mix64(np.arange(1, count * length + 1, dtype=np.uint64) * _GOLDEN + permutation_key)
    return np.argsort(hashes.reshape(count, length), axis=1, kind="stable").astype(np.uint16)


def _feistel(x: UInt64, bits: int, permutation_key: np.uint64) -> UInt64:
    """A bijection of `bits`-bit words: each half is changed in turn by a hash of the other (Luby, Rackoff 1988)."""
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    high, low = x >> low_bits, x & low_mask
    for half_round, round_key in enumerate(_round_keys(permutation_key)):
        if half_round % 2:
            high = high ^ (mix64((low + np.uint64(1)) * _GOLDEN ^ round_key) & high_mask)
        else:
            low = low ^ (mix64((high + np.uint64(1)) * _GOLDEN ^ round_key) & low_mask)
    return (high << low_bits) | low


@lru_cache(maxsize=256)
def _round_keys(permutation_key: np.uint64) -> list[np.uint64]:
    return [key(permutation_key, half_round) for half_round in range(_HALF_ROUNDS)]


def each(values: Int64) -> Iterator[tuple[int, Any]]:
    """The distinct values, each with an index of where it stands; quick where there is only one."""
    if not values.size:
        return
    if (values == values[0]).all():
        yield int(values[0]), slice(None)
        return
    for value in np.unique(values):
        yield int(value), values == value
