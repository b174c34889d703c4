"""Whether a classifier that is sure is right: how often it is, among those answers that are as sure. Plain Python."""

from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose probability is in (low, high]."""

    low: float
    high: float
    answers: int
    confidence: float  # mean of their probabilities
    accuracy: float


def calibration(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Answers by the probability of what is said; bins without an answer are left out."""
    members: list[list[int]] = [[] for _ in range(bins)]
    for number, confidence in enumerate(confidences):
        place = next(place for place in range(bins) if confidence <= (place + 1) / bins or place == bins - 1)
        members[place].append(number)
    return [
        Bin(
            low=place / bins,
            high=(place + 1) / bins,
            answers=len(numbers),
            confidence=sum(confidences[number] for number in numbers) / len(numbers),
            accuracy=sum(right[number] for number in numbers) / len(numbers),
        )
        for place, numbers in enumerate(members)
        if numbers
    ]


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error (arXiv 1706.04599, equation 3): |accuracy - confidence|, over the answers."""
    answers = sum(one.answers for one in bins)
    return sum(one.answers * abs(one.accuracy - one.confidence) for one in bins) / answers if answers else 0.0
