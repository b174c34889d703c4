import numpy as np
import pytest
import torch

from megatrain.config import Source
from megatrain.data.loading.batch import IGNORE_INDEX
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.data.loading.shards import PreparedData


@pytest.fixture
def sources(prepared, prepared_other):
    return (Source(path=str(prepared)), Source(path=str(prepared_other)))


def make(sources, *, sequences=100, micro_batch_size=4, rank=0, ranks=1, across=False):
    return EvaluationLoader(sources, 32, across, sequences, micro_batch_size, rank, ranks)


def scored(batches):
    """The rows that have targets: their tokens."""
    rows = [
        tuple(torch.cat([ids, labels[-1:]]).tolist())
        for batch in batches
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        if (labels != IGNORE_INDEX).all()
    ]
    targets = sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)
    assert targets == 32 * len(rows)  # a row counts as a whole or not at all
    return rows


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 4), (2, 4), (3, 5), (4, 1), (8, 16)])
def test_all_ranks_together_score_each_row_once(sources, ranks, micro_batch_size):
    expected = scored(make(sources, micro_batch_size=1))
    assert len(expected) == 100
    by_rank = [list(make(sources, rank=rank, ranks=ranks, micro_batch_size=micro_batch_size)) for rank in range(ranks)]
    assert len({len(batches) for batches in by_rank}) == 1
    assert all(batch.input_ids.shape == (micro_batch_size, 32) for batches in by_rank for batch in batches)
    assert sorted(row for batches in by_rank for row in scored(batches)) == sorted(expected)


def test_rows_are_the_first_of_each_source_in_natural_order(sources):
    rows = scored(make(sources, sequences=7))
    first, second = (PreparedData(source.path) for source in sources)
    expected = [first.read_tokens(0, row, 32) for row in range(4)] + [
        second.read_tokens(0, row, 32) for row in range(3)
    ]
    assert np.array_equal(np.array(rows), np.array(expected))


def test_a_source_gives_all_it_has_and_no_more(sources):
    available = sum(PreparedData(source.path).manifest.rows(32) for source in sources)
    loader = make(sources, sequences=100_000)
    assert loader.sequences == available
    assert len(scored(loader)) == available


def test_every_pass_is_the_same(sources):
    loader = make(sources, across=True)
    assert scored(loader) == scored(loader)
    assert all(batch.document_ids is None for batch in loader)
    loader.close()
