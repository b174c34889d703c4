import numpy as np
import pytest

from megatrain.data.ordering.permutation import key
from megatrain.data.ordering.shuffle import FullShuffle, SourceSize, WindowedShuffle


@pytest.mark.parametrize(
    ("rows", "per_block", "streams", "window_blocks"),
    [
        (1, 4, 4, 1),  # not even one block
        (64, 4, 4, 1),  # whole rounds, no tail
        (64, 4, 16, 1),  # one round
        (67, 4, 4, 1),  # a partial block at the end
        (64, 4, 5, 1),  # a tail of windows
        (331, 4, 5, 3),  # a tail of windows, of blocks that fill no window, and of rows
        (331, 4, 200, 1),  # all tail
        (400_003, 8, 3, 8192),  # windows of 65,536 rows: beyond explicit permutations
        (200_000, 2, 70_000, 1),  # more streams than are put in order in one go
    ],
)
def test_every_row_once(rows, per_block, streams, window_blocks):
    shuffle = WindowedShuffle(SourceSize(rows, per_block), streams, window_blocks)
    for epoch in (0, 1):
        got = shuffle.rows(np.arange(rows), key(epoch))
        assert np.array_equal(np.sort(got), np.arange(rows))


def test_consecutive_rows_come_from_as_many_windows_as_streams():
    shuffle = WindowedShuffle(SourceSize(12_800, 8), 32, 2)
    windows = shuffle.rows(np.arange(12_800), key(1)) // 16
    body = 12_800 // 512 * 512
    for first in range(0, body, 32):
        assert len(np.unique(windows[first : first + 32])) == 32


def test_rows_of_a_window_and_windows_are_both_shuffled_and_differ_by_epoch():
    shuffle = WindowedShuffle(SourceSize(12_800, 8), 32, 2)
    first, second = (shuffle.rows(np.arange(12_800), key(epoch)) for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    turns = first[:512].reshape(16, 32)
    within = turns % 16
    assert len({tuple(stream) for stream in within.T.tolist()}) == 32
    assert not np.array_equal(np.sort(turns[0] // 16), turns[0] // 16)


def test_the_tail_is_other_windows_each_epoch():
    shuffle = WindowedShuffle(SourceSize(100 * 8, 8), 32, 1)
    tails = [set((shuffle.rows(np.arange(96 * 8, 800), key(epoch)) // 8).tolist()) for epoch in range(3)]
    assert all(len(tail) == 4 for tail in tails)
    assert len({frozenset(tail) for tail in tails}) == 3


def test_a_full_shuffle_is_one_permutation():
    shuffle = FullShuffle(SourceSize(1000, 8))
    assert np.array_equal(np.sort(shuffle.rows(np.arange(1000), key(3))), np.arange(1000))
