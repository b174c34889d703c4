"""The order of one source's rows in one epoch: index within the epoch -> row of the source. Pure functions, that know
neither ranks nor what was read before.

`FullShuffle` is one permutation of all rows. `WindowedShuffle` keeps reading local, for spinning disks, parallel file
systems and object stores:

    window   `window_blocks` neighbouring blocks, all of whose rows are shuffled together
    stream   takes one window after the other; `streams` of them take turns, a row each
    round    one window in every stream; which windows those are is a permutation of all windows
    tail     the windows that fill no round, and the rows that fill no window: one permutation of all their rows

    index     0      1      2     …  L-1    L     L+1   …    (L streams)
    stream    0      1      2     …  L-1    0     1     …    all rows of a round, then the next round; last the tail

So any L consecutive rows come from L different windows, and only `streams` windows are being read at a time. A source
of fewer than `streams` windows is all tail: fully shuffled.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from megatrain.data.ordering.permutation import EXPLICIT_BELOW, UInt16, each, explicit_permutations, key, permute

Int64 = NDArray[np.int64]

# What a key is for, so that no two uses share one.
_WINDOWS, _ROWS, _TAIL = 1, 2, 3
_AT_ONCE = 1 << 16  # rows whose order within their windows is computed in one go


@dataclass(frozen=True, slots=True)
class SourceSize:
    """Rows of a source: all blocks hold `rows_per_block`, but for the last, which may hold fewer."""

    rows: int
    rows_per_block: int


@dataclass(frozen=True, slots=True)
class ShuffleRule:
    """How the rows of every source are shuffled. The streams of a run never change."""

    mode: Literal["windowed", "full"] = "windowed"
    streams: int = 4096
    window_blocks: int = 1


class Shuffle(Protocol):
    """One source's order."""

    def rows(self, indices: Int64, epoch_key: np.uint64) -> Int64:
        """int64 [N] within 0..rows-1 -> int64 [N], a bijection of 0..rows-1 chosen by the key."""
        ...


def shuffle_of(size: SourceSize, rule: ShuffleRule) -> Shuffle:
    return FullShuffle(size) if rule.mode == "full" else WindowedShuffle(size, rule.streams, rule.window_blocks)


class FullShuffle:
    def __init__(self, size: SourceSize) -> None:
        self._rows = size.rows

    def rows(self, indices: Int64, epoch_key: np.uint64) -> Int64:
        return permute(indices, self._rows, epoch_key)


class WindowedShuffle:
    """See the head of this file."""

    def __init__(self, size: SourceSize, streams: int, window_blocks: int) -> None:
        self._streams = streams
        self._rows = size.rows
        self._window_rows = window_blocks * size.rows_per_block
        self._windows = size.rows // self._window_rows
        self._rounds = self._windows // streams
        self._body_rows = self._rounds * streams * self._window_rows  # in whole rounds
        self._group = max(1, _AT_ONCE // self._window_rows)  # streams whose windows are put in order in one go
        groups = -(-streams // self._group)
        self._orders = lru_cache(maxsize=groups + 8)(self._make_orders)  # one round, and the edge to the next

    def rows(self, indices: Int64, epoch_key: np.uint64) -> Int64:
        if not self._rounds:
            return self._tail(indices, epoch_key)
        body = indices < self._body_rows
        if body.all():
            return self._body(indices, epoch_key)
        rows = np.empty_like(indices)
        rows[body] = self._body(indices[body], epoch_key)
        rows[~body] = self._tail(indices[~body], epoch_key)
        return rows

    def _body(self, indices: Int64, epoch_key: np.uint64) -> Int64:
        turns, streams = np.divmod(indices, self._streams)
        rounds, turns = np.divmod(turns, self._window_rows)
        windows = permute(rounds * self._streams + streams, self._windows, key(epoch_key, _WINDOWS))
        return windows * self._window_rows + self._within_windows(rounds, streams, turns, epoch_key)

    def _within_windows(self, rounds: Int64, streams: Int64, turns: Int64, epoch_key: np.uint64) -> Int64:
        """Which row of its window a stream gives at its turn."""
        within = np.empty_like(turns)
        groups, members = np.divmod(streams, self._group)
        numbers = rounds * self._streams + groups  # one number for each pair of round and group
        for number, here in each(numbers):
            round_, group = divmod(number, self._streams)
            if self._window_rows < EXPLICIT_BELOW:
                within[here] = self._orders(epoch_key, round_, group)[members[here], turns[here]]
            else:  # a window as long as that is a group of its own
                within[here] = permute(turns[here], self._window_rows, key(epoch_key, _ROWS, round_, group))
        return within

    def _make_orders(self, epoch_key: np.uint64, round_: int, group: int) -> UInt16:
        return explicit_permutations(self._group, self._window_rows, key(epoch_key, _ROWS, round_, group))

    def _tail(self, indices: Int64, epoch_key: np.uint64) -> Int64:
        places = permute(indices - self._body_rows, self._rows - self._body_rows, key(epoch_key, _TAIL))
        numbers, within = np.divmod(places, self._window_rows)
        numbers += self._rounds * self._streams
        # at or beyond `windows` are the rows after the last window, which stay where they are
        whole = numbers < self._windows
        numbers[whole] = permute(numbers[whole], self._windows, key(epoch_key, _WINDOWS))
        return numbers * self._window_rows + within
