"""Packing documents into rows by best fit, which cuts only documents longer than a row (Ding et al., arXiv 2404.10830).

A row has one token more than it has inputs. A document longer than that is cut into pieces that share one token, so
that each of its tokens but the first is a target exactly once. The pieces of a window of documents go, the longest
first, each into the fullest row that still has room for it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def cut(length: int, row_tokens: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a document of `length` tokens begin and end; neighbours share one token."""
    start = 0
    while True:
        end = min(start + row_tokens, length)
        yield start, end
        if end == length:
            return
        start = end - 1


def best_fit(lengths: Sequence[int] | NDArray[np.integer], row_tokens: int) -> list[list[int]]:
    """Which pieces (numbers of `lengths`, each at most `row_tokens`) share a row: best fit, decreasing.

    Rows are in the order of their first piece, pieces in their own order: a row's place says nothing of its content.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(row_tokens + 1)]  # rows by how many tokens they still take
    rooms = 0  # bit n is set while with_room[n] is not empty
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            rows[row].append(piece)
        else:
            room, row = row_tokens, len(rows)
            rows.append([piece])
        if left := room - length:
            with_room[left].append(row)
            rooms |= 1 << left
    for row_pieces in rows:
        row_pieces.sort()
    return sorted(rows, key=lambda pieces: pieces[0])
