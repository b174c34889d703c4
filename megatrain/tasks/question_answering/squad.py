"""Exact match and F1 of answers, by the definitions of SQuAD's evaluation scripts (arXiv 1606.05250, 1806.03822)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Without case, punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 where one of the answers is predicted; no answer is the empty one."""
    return float(any(normalized(predicted) == normalized(answer) for answer in answers or ("",)))


def f1(predicted: str, answers: Sequence[str], *, unanswerable: bool) -> float:
    """Of the words of a prediction and of an answer, for the answer that fits best.

    Args:
        unanswerable: as SQuAD 2 has it: where one of the two has no words, 1 if the other has none either; else 0.
    """
    return max(
        _f1(normalized(predicted).split(), normalized(answer).split(), unanswerable) for answer in answers or ("",)
    )


def _f1(predicted: list[str], answer: list[str], unanswerable: bool) -> float:
    if unanswerable and not (predicted and answer):
        return float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    return 2 * common / (len(predicted) + len(answer)) if common else 0.0
