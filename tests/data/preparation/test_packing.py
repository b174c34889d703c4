import random

import numpy as np
import pytest

from megatrain.data.preparation.packing import best_fit, cut


@pytest.mark.parametrize(("length", "pieces"), [(1, [(0, 1)]), (9, [(0, 9)]), (10, [(0, 9), (8, 10)])])
def test_pieces_share_one_token(length, pieces):
    assert list(cut(length, 9)) == pieces


def test_every_token_but_the_first_is_a_target_once():
    for length in range(1, 60):
        targets = [token for start, end in cut(length, 9) for token in range(start + 1, end)]
        assert targets == list(range(1, length))


def test_each_piece_goes_into_the_fullest_row_with_room():
    #            rows: 8 + 2, 7 + 3, 6 + 3, in the order of their first pieces
    assert best_fit([3, 6, 8, 2, 7, 3], 10) == [[0, 4], [1, 5], [2, 3]]


def naive(lengths, capacity):
    """The rule as a sentence, by looking at every row."""
    rows = []
    for piece in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        rooms = [(capacity - sum(lengths[n] for n in row), number) for number, row in enumerate(rows)]
        fitting = [room for room in rooms if room[0] >= lengths[piece]]
        if fitting:
            rows[min(fitting)[1]].append(piece)
        else:
            rows.append([piece])
    return [sorted(lengths[n] for n in row) for row in rows]


def test_it_is_best_fit_decreasing():
    chance = random.Random(3)
    for _ in range(30):
        lengths = [chance.randint(1, 40) for _ in range(chance.randint(1, 80))]
        rows = best_fit(lengths, 40)
        assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
        loads = [sum(lengths[piece] for piece in row) for row in rows]
        assert max(loads) <= 40
        assert sorted(loads) == sorted(map(sum, naive(lengths, 40)))


def test_text_like_lengths_leave_next_to_no_padding():
    lengths = np.minimum(np.random.default_rng(0).lognormal(6.3, 1.0, 20_000).astype(int) + 2, 2049)
    rows = best_fit(lengths, 2049)
    assert lengths.sum() / (len(rows) * 2049) > 0.9995
