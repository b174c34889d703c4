"""Covering arrays: a few cases in which every two values of two factors that may meet do meet."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]


def every_case(factors: Mapping[str, Sequence[Any]], legal: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """The full product of the factors' values, as far as it is legal."""
    cases = (dict(zip(factors, values, strict=True)) for values in product(*factors.values()))
    return [case for case in cases if legal(case)]


def pairs_of(case: Case) -> frozenset[Any]:
    """The pairs (factor and value, factor and value) of a case."""
    return frozenset(combinations(case.items(), 2))


def covering_array(
    factors: Mapping[str, Sequence[Any]], legal: Callable[[Case], bool] = lambda case: True
) -> list[Case]:
    """Legal cases with every pair that some legal case has. Greedy: each has most of the pairs still missing.

    The same for the same arguments, and a few cases longer than the shortest that there is.
    """
    candidates = [(case, pairs_of(case)) for case in every_case(factors, legal)]
    missing = frozenset().union(*(pairs for _, pairs in candidates))
    chosen = []
    while missing:
        case, pairs = max(candidates, key=lambda candidate: len(candidate[1] & missing))
        chosen.append(case)
        missing -= pairs
    return chosen
