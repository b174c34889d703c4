import pytest
import torch

from megatrain.data.loading.batch import Batch
from megatrain.kernels.keyed_random import dropout, mixed, random_bits, uniform
from megatrain.perturbation.noise import Noise, Place

SITE = torch.tensor(77)


def batch(rows: int, length: int = 8, cu_seqlens: list[int] | None = None) -> Batch:
    ids = torch.zeros(rows, length, dtype=torch.int64)
    bounds = None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32)
    return Batch(ids, ids, ids, bounds)


def keys(noise: Noise, rows: int, at: Place, length: int = 8) -> torch.Tensor:
    noise.begin(batch(rows, length), at)
    assert noise.keys_BS is not None
    return noise.keys_BS


def test_keys_are_those_of_the_rows_of_the_global_batch_on_any_layout() -> None:
    whole = keys(Noise(5), 4, Place(3, 0))
    assert torch.equal(torch.cat([keys(Noise(5), 2, Place(3, 0)), keys(Noise(5), 2, Place(3, 1))]), whole)
    ranks = [keys(Noise(5, data_rank=rank, data_size=2), 1, Place(3, number)) for number in (0, 1) for rank in (0, 1)]
    assert torch.equal(torch.cat(ranks), whole)
    parts = [
        keys(Noise(5, sequence_parts=2, part=lambda of, n=number: of.chunk(2, 1)[n]), 4, Place(3, 0), length=4)
        for number in (0, 1)
    ]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_keys_differ_by_seed_step_row_position_and_copy() -> None:
    found = [keys(Noise(seed, copies=2), 64, Place(step, 0), 64) for seed in (0, 1, 2**40) for step in (0, 1, 2**33)]
    everything = torch.stack(found).flatten()
    assert everything.min() >= 0
    assert everything.max() < 2**32
    assert len(everything.unique()) >= len(everything) - 10, "32 bits: two of 73,728 meet 0.6 times by chance"


def test_there_are_none_outside_of_a_step() -> None:
    noise = Noise(5)
    keys(noise, 1, Place(0, 0))
    noise.end()
    assert noise.keys_BS is None
    with pytest.raises(ValueError, match="name the place"):
        noise.begin(batch(1), None)


def test_lengths_are_those_of_the_examples() -> None:
    noise = Noise(5, copies=2)
    noise.begin(batch(2, cu_seqlens=[0, 3, 8, 12, 16]), Place(0, 0))
    assert noise.lengths_BS is not None
    assert noise.lengths_BS.tolist() == [[3] * 3 + [5] * 5, [4] * 8] * 2


def test_bits_are_even_and_independent() -> None:
    """Of rows, positions, channels and sites that are next to each other; bounds are about five standard deviations."""
    key = keys(Noise(5), 16, Place(0, 0), 64)
    drawn = random_bits(key, SITE, 256)
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    share = torch.stack([((drawn >> bit) & 1).float().mean() for bit in range(32)])
    assert (share - 0.5).abs().max() < 0.005
    centred = uniform(key, SITE, 256)
    assert centred.abs().max() <= 1.0
    assert centred.var() == pytest.approx(1 / 3, abs=0.005)
    others = {
        "row": centred.roll(1, 0),
        "position": centred.roll(1, 1),
        "channel": centred.roll(1, 2),
        "site": uniform(key, SITE + 1, 256),
        "step": uniform(keys(Noise(5), 16, Place(1, 0), 64), SITE, 256),
    }
    for name, other in others.items():
        assert ((centred * other).mean() * 3).abs() < 0.01, name


def test_bits_are_the_hash_of_keys_and_channels() -> None:
    key = keys(Noise(5), 2, Place(0, 0))
    channels = [mixed(mixed(number) ^ 77) for number in range(1, 7)]
    expected = [[[mixed(one ^ channel) for channel in channels] for one in row] for row in key.tolist()]
    assert random_bits(key, SITE, 6).tolist() == expected


def test_dropout_keeps_the_mean_and_its_gradient_has_the_same_mask() -> None:
    x = torch.ones(16, 64, 256, requires_grad=True)
    out = dropout(x, keys(Noise(5), 16, Place(0, 0), 64), SITE, 0.1)
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert out.max().item() == pytest.approx(1 / 0.9)
    out.sum().backward()
    assert torch.equal(x.grad, out)
    assert dropout(x.bfloat16(), keys(Noise(5), 16, Place(0, 0), 64), SITE, 0.1).dtype == torch.bfloat16
