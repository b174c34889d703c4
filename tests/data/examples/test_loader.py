import pytest
import torch

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.loader import ExampleEvaluation, ExampleLoader
from megatrain.data.examples.packing import pack
from megatrain.data.loading.batch import IGNORE_INDEX

ROWS, SEQUENCE, GLOBAL_BATCH = 13, 8, 8


@pytest.fixture
def rows(make_examples):
    """One example a row, each with tokens of its own and another number of targets."""
    return pack(make_examples(*((2, 3 + i % 3) for i in range(ROWS))), SEQUENCE, pad_id=0)


def loader(rows, rank=0, size=1, micro=1, seed=3, global_batch=GLOBAL_BATCH):
    return ExampleLoader(
        rows, global_batch_size=global_batch, micro_batch_size=micro, data_rank=rank, data_size=size, seed=seed
    )


def first_tokens(batches):
    """Which rows: each begins with a token of its own."""
    return [int(ids[0]) for batch in batches for ids in batch.input_ids]


def stream(rows, steps, size=1, micro=1, **options):
    """The rows of each step, over all ranks, in the order of the global batch."""
    loaders = [loader(rows, rank, size, micro, **options) for rank in range(size)]
    seen = []
    for _ in range(steps):
        by_rank = [one.next().micro_batches for one in loaders]
        seen.append(
            [token for same_micro_batch in zip(*by_rank, strict=True) for token in first_tokens(same_micro_batch)]
        )
    return seen


@pytest.mark.parametrize(("size", "micro"), [(1, 8), (2, 1), (2, 4), (4, 1), (4, 2), (8, 1)])
def test_the_stream_is_the_same_for_any_number_of_ranks(rows, size, micro) -> None:
    assert stream(rows, 6, size, micro) == stream(rows, 6)


@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_a_batch_size_that_grows_leaves_the_stream_as_it_is(rows, size, micro) -> None:
    steps = stream(rows, 5, size, micro, global_batch=BatchSizes(8, ((9, 4),)))
    assert [len(step) for step in steps] == [4, 4, 4, 8, 8]
    expected = [token for step in stream(rows, 4) for token in step]
    assert [token for step in steps for token in step] == expected[:28]


def test_an_epoch_visits_each_row_once_in_another_order(rows) -> None:
    flat = [token for step in stream(rows, 5) for token in step]
    epochs = [flat[at : at + ROWS] for at in range(0, 3 * ROWS, ROWS)]
    everything = sorted(int(row.tokens[0]) for row in rows)
    assert len(set(everything)) == ROWS
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert everything not in epochs


def test_the_seed_decides_the_order(rows) -> None:
    assert stream(rows, 3, seed=3) == stream(rows, 3, seed=3) != stream(rows, 3, seed=4)


def test_a_batch_larger_than_the_examples_repeats_them(rows) -> None:
    (step,) = stream(rows[:3], 1)
    assert len(step) == 8
    assert [step[:3].count(token) for token in set(step)] == [1, 1, 1]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_targets_are_those_of_the_global_batch(rows, size) -> None:
    loaders = [loader(rows, rank, size) for rank in range(size)]
    for _ in range(4):
        steps = [one.next() for one in loaders]
        labels = [batch.labels for step in steps for batch in step.micro_batches]
        counted = int((torch.cat(labels) != IGNORE_INDEX).sum())
        assert [step.targets for step in steps] == [counted] * size


@pytest.mark.parametrize("then", [(1, 1), (2, 2), (4, 1)])
def test_elastic_resume_on_any_number_of_ranks(rows, then) -> None:
    before = loader(rows, rank=1, size=2, micro=2)
    for _ in range(3):
        before.next()
    state = before.state_dict()
    assert state["position"] == 3 * GLOBAL_BATCH

    size, micro = then
    expected = stream(rows, 5)
    for rank in range(size):
        after = loader(rows, rank, size, micro)
        after.load_state_dict(state)
        mine = first_tokens(after.next().micro_batches)
        in_batch = [i for i in range(GLOBAL_BATCH) if i // micro % size == rank]
        assert mine == [expected[3][i] for i in in_batch]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (lambda rows: loader(rows[:-1]), "rows, examples"),
        (lambda rows: loader([rows[1], rows[0], *rows[2:]]), "examples"),
        (lambda rows: loader(rows, seed=4), "seed"),
    ],
)
def test_other_examples_are_refused(rows, changed, named) -> None:
    state = loader(rows).state_dict()
    with pytest.raises(DataError, match=rf"\({named} changed\)"):
        changed(rows).load_state_dict(state)


def test_other_targets_are_other_examples(rows, make_examples) -> None:
    state = loader(rows).state_dict()
    elsewhere = pack(make_examples(*((3, 2 + i % 3) for i in range(ROWS))), SEQUENCE, pad_id=0)
    assert all((a.tokens == b.tokens).all() for a, b in zip(rows, elsewhere, strict=True))
    with pytest.raises(DataError, match="examples changed"):
        loader(elsewhere).load_state_dict(state)


@pytest.mark.parametrize(("size", "micro"), [(3, 1), (1, 3), (4, 4)])
def test_a_batch_that_cannot_be_shared_out(rows, size, micro) -> None:
    with pytest.raises(ConfigError, match=rf"training.global_batch_size: 8: must be a multiple of .* {micro} x {size}"):
        loader(rows, size=size, micro=micro)


@pytest.mark.parametrize(("size", "micro"), [(1, 1), (1, 4), (2, 3), (4, 2), (4, 16), (16, 1)])
def test_an_evaluation_covers_each_row_once_in_equally_many_batches(rows, size, micro) -> None:
    by_rank = [
        list(ExampleEvaluation(rows, micro_batch_size=micro, data_rank=rank, data_size=size)) for rank in range(size)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    scored = [
        tuple(ids.tolist())
        for batches in by_rank
        for batch in batches
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True)
        if (labels != IGNORE_INDEX).any()
    ]
    assert sorted(scored) == sorted(tuple(row.tokens[:-1].tolist()) for row in rows)
    assert all(batch.input_ids.shape[1] == SEQUENCE for batches in by_rank for batch in batches)
