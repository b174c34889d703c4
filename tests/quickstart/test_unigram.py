import math

import numpy as np
import pytest

from quickstart.unigram import cross_entropy


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_equal_frequencies_cost_the_logarithm_of_the_vocabulary():
    assert cross_entropy(counts(5, 0, 3, 9), [counts(7, 7, 7, 7)], [1.0]) == pytest.approx(math.log(4))


def test_it_is_the_mean_over_held_out_tokens():
    train = counts(2, 0)  # with one added to each: 3/4, 1/4
    assert cross_entropy(counts(1, 2), [train], [1.0]) == pytest.approx(-(math.log(3 / 4) + 2 * math.log(1 / 4)) / 3)


def test_sources_count_by_their_weight_not_their_size():
    small, large = counts(0, 1), counts(999, 0)
    mixed = 0.25 * np.array([1 / 3, 2 / 3]) + 0.75 * np.array([1000 / 1001, 1 / 1001])
    assert cross_entropy(counts(0, 1), [small, large], [1.0, 3.0]) == pytest.approx(-math.log(mixed[1]))


def test_a_token_that_training_lacks_costs_a_finite_amount():
    assert math.isfinite(cross_entropy(counts(0, 1), [counts(10, 0)], [1.0]))
