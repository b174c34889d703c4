"""The pool of ranks that the tests share begins each run anew."""

import gc

import pytest

from tests.distributed.layouts import Layout, trained
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed


def engines() -> int:
    from deepspeed import DeepSpeedEngine

    gc.collect()
    return sum(issubclass(type(thing), DeepSpeedEngine) for thing in gc.get_objects())


@pytest.mark.parametrize("zero", [1, 3])
def test_a_run_leaves_no_engine_and_so_no_groups_with_threads(ranks: RankPool, zero: int) -> None:
    ranks.run(2, trained, Layout(zero, 2, 1), 1)
    assert ranks.run(2, engines) == [0, 0]
