import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.ordering.mixture import MIX_BLOCK, Mixture, quotas
from megatrain.data.ordering.permutation import key


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [1, 1, 1], [0.9, 0.09, 0.01], [5] * 13])
def test_quotas_are_proportional_and_sum_to_a_mix_block(weights):
    quota = quotas(weights)
    assert sum(quota) == MIX_BLOCK
    exact = np.array(weights) / sum(weights) * MIX_BLOCK
    assert np.abs(np.array(quota) - exact).max() < 1


def test_a_source_that_would_never_be_read_is_refused():
    with pytest.raises(DataError, match=r"data\.train\.1\.weight: 0\.0001.*never be read"):
        quotas([1.0, 0.0001])


@pytest.mark.parametrize("mix_block", [0, 1, 12_345_678_901])
def test_counts_are_exact_in_every_mix_block(mix_block):
    quota = quotas([0.6, 0.3, 0.1])
    sources, _ = Mixture(quota, key(1)).locate(mix_block * MIX_BLOCK + np.arange(MIX_BLOCK))
    assert np.bincount(sources).tolist() == list(quota)


def test_ordinals_count_up_without_gaps_across_mix_blocks():
    mixture = Mixture(quotas([0.6, 0.3, 0.1]), key(1))
    sources, ordinals = mixture.locate(np.arange(3 * MIX_BLOCK))
    for source in range(3):
        mine = ordinals[sources == source]
        assert np.array_equal(mine, np.arange(len(mine)))


def test_any_position_can_be_asked_for_alone():
    mixture = Mixture(quotas([0.6, 0.4]), key(1))
    positions = np.array([9000, 3, 4096, 3, 10**15])
    sources, ordinals = mixture.locate(positions)
    for at, position in enumerate(positions):
        source, ordinal = Mixture(quotas([0.6, 0.4]), key(1)).locate(np.array([position]))
        assert (source[0], ordinal[0]) == (sources[at], ordinals[at])


@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 10_001])
def test_counts_before_a_position(position):
    mixture = Mixture(quotas([0.6, 0.4]), key(1))
    sources, _ = mixture.locate(np.arange(position))
    assert mixture.counts(position).tolist() == np.bincount(sources, minlength=2).tolist()


def test_mix_blocks_are_arranged_differently():
    mixture = Mixture(quotas([0.5, 0.5]), key(1))
    sources, _ = mixture.locate(np.arange(2 * MIX_BLOCK))
    agreeing = (sources[:MIX_BLOCK] == sources[MIX_BLOCK:]).mean()
    assert 0.45 < agreeing < 0.55


def test_golden_vectors():
    sources, ordinals = Mixture(quotas([0.7, 0.3]), key(1)).locate(np.array([0, 1, 2, 3, 4095, 4096, 10**12]))
    assert sources.tolist() == [1, 1, 0, 0, 0, 0, 1]
    assert ordinals.tolist() == [0, 1, 0, 1, 2866, 2867, 300048828125]
