"""The order of a run's data rests on these numbers: a test that changes here needs a new ORDER_VERSION."""

import numpy as np
import pytest

from megatrain.data.ordering.permutation import EXPLICIT_BELOW, explicit_permutation, key, mix64, permute


def test_mix64_is_the_published_splitmix64():
    # the first outputs of SplitMix64 seeded with 0, from the reference implementation (Vigna, prng.di.unimi.it)
    states = np.array([1, 2, 3], dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_golden_vectors():
    assert int(key(1337, 2, 0, 0)) == 1232334175841215722
    assert permute(np.arange(10), 10, key(1)).tolist() == [2, 8, 4, 9, 7, 0, 6, 5, 3, 1]
    assert permute(np.arange(8), 100_000, key(1)).tolist() == [969, 73672, 40170, 60885, 21405, 11172, 1006, 95913]
    assert permute(np.arange(4), 3_000_000_000, key(1)).tolist() == [477386085, 2530435922, 2471270739, 1502905319]


@pytest.mark.parametrize("length", [1, 2, 3, 100, EXPLICIT_BELOW - 1, EXPLICIT_BELOW, EXPLICIT_BELOW + 1, 131_073])
def test_every_index_is_hit_once(length):
    permuted = permute(np.arange(length), length, key(5, length))
    assert np.array_equal(np.sort(permuted), np.arange(length))


def test_an_index_goes_the_same_way_alone_and_in_company():
    length = 100_003
    together = permute(np.arange(length), length, key(9))
    alone = [int(permute(np.array([i]), length, key(9))[0]) for i in (0, 1, 77_777, length - 1)]
    assert alone == together[[0, 1, 77_777, length - 1]].tolist()


def test_keys_differ_by_order_and_value_of_their_parts():
    keys = {int(key(*parts)) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), (-1,), (2**64 - 2,)]}
    assert len(keys) == 7


def test_large_permutations_look_random():
    """Neighbours land far apart, and each stretch of the input covers the output evenly."""
    length = 1_000_000
    permuted = permute(np.arange(65_536), length, key(3))
    assert np.abs(np.diff(permuted)).mean() == pytest.approx(length / 3, rel=0.02)  # of two uniform draws
    cells = np.bincount(permuted * 64 // length, minlength=64)
    assert ((cells - 1024) ** 2 / 1024).sum() < 120  # chi-squared with 63 degrees of freedom: p < 1e-5 above
    other = permute(np.arange(65_536), length, key(4))
    assert (permuted == other).sum() < 5


def test_a_cached_permutation_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        explicit_permutation(10, key(1))[0] = 3
