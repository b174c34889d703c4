import random
import subprocess
import sys
import threading
import time

import pytest

from megatrain.data.loading.read_ahead import ReadAhead


def _next(position):
    return position + 1


def test_results_come_in_order_and_no_further_ahead_than_asked():
    read = []
    ahead = ReadAhead(
        lambda position: read.append(position) or position,
        position=10,
        next_position=lambda position: position + 5,
        depth=2,
    )
    assert [ahead.next() for _ in range(3)] == [10, 15, 20]
    time.sleep(0.05)
    assert max(read) == 20 + 2 * 5
    ahead.close()


def test_an_error_is_raised_to_the_one_who_asks_after_what_came_before_it():
    def read(position):
        if position == 2:
            raise OSError("disk gone")
        return position

    ahead = ReadAhead(read, position=0, next_position=_next, depth=4)
    assert [ahead.next(), ahead.next()] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        ahead.next()
    ahead.close()


def test_close_ends_the_thread_even_when_nobody_takes_its_results():
    before = threading.active_count()
    ahead = ReadAhead(lambda position: position, position=0, next_position=_next, depth=1)
    time.sleep(0.02)
    ahead.close()
    assert threading.active_count() == before


def test_threads_that_finish_out_of_order_hand_over_in_order():
    chance = random.Random(0)
    pauses = {position: chance.random() / 100 for position in range(60)}
    threads = set()

    def read(position):
        threads.add(threading.get_ident())
        time.sleep(pauses[position])
        return position

    ahead = ReadAhead(read, position=0, next_position=_next, depth=8, threads=4)
    assert [ahead.next() for _ in range(50)] == list(range(50))
    assert len(threads) == 4
    ahead.close()


def test_a_process_that_ends_without_closing_ends_well():
    code = """
import torch
from megatrain.data.loading.read_ahead import ReadAhead
sort, after = lambda position: torch.arange(1_000_000).sort(), lambda position: position + 1
ahead = ReadAhead(sort, position=0, next_position=after, depth=10**6, threads=3)
ahead.next()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
