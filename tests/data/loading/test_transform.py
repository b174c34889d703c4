"""A user's function on each sample, here or in processes."""

import time

import numpy as np
import pytest
import torch

from megatrain.base.errors import DataError
from megatrain.config import TransformSection

HERE = "tests.data.loading.test_transform"


def reverse_some(tokens, ends, position):
    """Later samples are done sooner: whoever relied on who is first would mix them up."""
    time.sleep(0.002 * (3 - position % 4))
    return (tokens[::-1] if position % 2 else tokens), ends


def raise_at_five(tokens, ends, position):
    if position == 5:
        raise RuntimeError("not this one")
    return tokens, ends


def too_long(tokens, ends, position):
    return np.append(tokens, 0), ends


def out_of_range(tokens, ends, position):
    return tokens.astype(np.int64) + 10_000, ends


def bad_ends(tokens, ends, position):
    return tokens, np.array([3, 2])


def first(loader):
    return torch.cat([batch.input_ids for batch in loader.next().micro_batches])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("threads", [1, 3])
def test_it_changes_samples_but_not_their_order(make_loader, workers, threads):
    plain = first(make_loader())
    labels = torch.cat([batch.labels for batch in make_loader().next().micro_batches])
    loader = make_loader(
        transform=TransformSection(function=f"{HERE}:reverse_some", workers=workers), reading={"threads": threads}
    )
    got = first(loader)
    assert torch.equal(got[::2], plain[::2])
    assert torch.equal(got[1::2], labels[1::2].flip(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raise_at_five", "sample 5: RuntimeError: not this one"),
        ("too_long", r"sample 0: gave tokens of shape \(34,\)"),
        ("out_of_range", r"sample 0: gave a token outside 0\.\.399"),
        ("bad_ends", r"sample 0: gave ends that do not ascend within 1\.\.32"),
    ],
)
def test_what_it_does_wrong_is_named_with_the_sample(make_loader, name, message):
    loader = make_loader(transform=TransformSection(function=f"{HERE}:{name}"))
    with pytest.raises(DataError, match=rf"data\.transform\.function: {HERE}:{name}: {message}"):
        loader.next()


@pytest.mark.parametrize("function", ["nowhere.at_all:f", f"{HERE}:no_such"])
def test_a_function_that_is_not_there(make_loader, function):
    with pytest.raises(DataError, match=rf"data\.transform\.function: {function}: .*PYTHONPATH"):
        make_loader(transform=TransformSection(function=function))
