"""The array that stands for a product in `make test` has every pair of values that the product has."""

from tests.covering import covering_array, every_case, pairs_of

FACTORS = {"zero": (0, 1, 2, 3), "tensor": (1, 2), "data": (1, 2), "sequence_parallel": (False, True)}


def legal(case: dict) -> bool:
    return case["tensor"] > 1 or not case["sequence_parallel"]


def test_every_legal_pair_is_covered_by_fewer_cases() -> None:
    product, array = every_case(FACTORS, legal), covering_array(FACTORS, legal)
    assert len(product) == 24
    assert len(array) < 12
    assert frozenset().union(*map(pairs_of, array)) == frozenset().union(*map(pairs_of, product))
    assert all(map(legal, array))


def test_the_same_cases_every_time() -> None:
    assert covering_array(FACTORS, legal) == covering_array(FACTORS, legal)
