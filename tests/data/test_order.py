import time
import tracemalloc

import numpy as np
import pytest

from megatrain.data.mixture import quotas
from megatrain.data.order import ORDER_VERSION, Order, SourceSize, Stage

ONE = [Stage(0, quotas([1.0]))]


def test_golden_vectors():
    """Whoever changes the order must change ORDER_VERSION, so that no old position is read in the new order."""
    stages = [Stage(0, quotas([0.75, 0.25])), Stage(5000, quotas([0.5, 0.5]))]
    order = Order([SourceSize(1_000_000, 128), SourceSize(1000, 128)], stages, seed=1337)
    samples = order.locate(np.array([0, 1, 2, 4999, 5000, 5001, 9_000_000_000]))
    assert ORDER_VERSION == 1
    assert samples.stage.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert samples.source.tolist() == [0, 1, 1, 0, 0, 1, 1]
    assert samples.epoch.tolist() == [0, 0, 0, 0, 0, 1, 4499998]
    assert samples.block.tolist() == [3438, 7, 1, 6954, 7009, 0, 7]
    assert samples.row.tolist() == [49, 20, 90, 77, 50, 86, 12]
    assert all(column.dtype == np.int64 for column in samples)


@pytest.mark.parametrize(("rows", "per_block"), [(1, 1), (37, 8), (1000, 128), (70_001, 128)])
def test_every_epoch_visits_each_row_once(rows, per_block):
    order = Order([SourceSize(rows, per_block)], ONE, seed=3)
    for epoch in (0, 1, 5):
        samples = order.locate(epoch * rows + np.arange(rows))
        assert (samples.epoch == epoch).all()
        assert np.array_equal(np.sort(samples.block * per_block + samples.row), np.arange(rows))
        assert samples.row.max() < per_block


def test_epochs_sources_and_seeds_are_shuffled_differently():
    def rows(seed, source, epoch):
        order = Order([SourceSize(500, 10)] * 2, [Stage(0, quotas([1, 1]))], seed)
        samples = order.locate(np.arange(4000))
        mine = (samples.source == source) & (samples.epoch == epoch)
        return tuple((samples.block * 10 + samples.row)[mine])

    orders = {rows(1, 0, 0), rows(1, 0, 1), rows(1, 1, 0), rows(2, 0, 0)}
    assert len(orders) == 4


def test_a_stage_goes_on_where_the_one_before_left_its_sources():
    stages = [Stage(0, quotas([0.9, 0.1])), Stage(1500, quotas([0.2, 0.8])), Stage(9000, quotas([0.5, 0.5]))]
    order = Order([SourceSize(100_000, 16)] * 2, stages, seed=11)
    samples = order.locate(np.arange(12_000))
    for source in range(2):
        mine = samples.source == source
        visited = (samples.block * 16 + samples.row)[mine]
        assert len(np.unique(visited)) == len(visited)  # no row twice in its first epoch, across stages
    assert np.bincount(samples.source[1500 : 1500 + 4096]).tolist() == list(quotas([0.2, 0.8]))
    for position in (0, 1, 1499, 1500, 1501, 9000, 12_000):
        assert order.counts(position).tolist() == np.bincount(samples.source[:position], minlength=2).tolist()


def test_positions_need_no_order_and_no_company():
    order = Order([SourceSize(300, 16), SourceSize(90_000, 16)], [Stage(0, quotas([1, 2]))], seed=5)
    positions = np.random.default_rng(0).permutation(np.arange(50_000, 52_000))
    shuffled = order.locate(positions)
    ascending = order.locate(np.sort(positions))
    for mixed, sorted_ in zip(shuffled, ascending, strict=True):
        assert np.array_equal(mixed[np.argsort(positions)], sorted_)


def test_a_billion_rows_cost_neither_time_nor_memory():
    tracemalloc.start()
    started = time.perf_counter()
    order = Order([SourceSize(10**9, 128)], ONE, seed=1)
    samples = order.locate(np.arange(7 * 10**9, 7 * 10**9 + 512))
    elapsed = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (samples.epoch == 7).all()
    assert elapsed < 0.5  # 50 ms is the aim; a loaded machine gets ten times that
    assert peak < 10 << 20


def test_a_batch_mixes_blocks_as_well_as_any_shuffle():
    """Entropy of the blocks that batches of 256 draw from, against uniform draws without replacement."""
    rows, per_block = 128_000, 128
    order = Order([SourceSize(rows, per_block)], ONE, seed=1)
    reference = np.random.default_rng(0).permutation(rows) // per_block

    def entropy(blocks):
        counts = np.unique(blocks, return_counts=True)[1] / len(blocks)
        return -(counts * np.log(counts)).sum()

    ours = np.mean([entropy(order.locate(np.arange(b * 256, b * 256 + 256)).block) for b in range(64)])
    ideal = np.mean([entropy(reference[b * 256 : b * 256 + 256]) for b in range(64)])
    assert ours == pytest.approx(ideal, rel=0.01)
