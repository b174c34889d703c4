"""Per-class scores are scikit-learn's, and those of the loop."""

import random
import warnings

import pytest

from megatrain.evaluation.classification import confusion_of, report_of

NAMES = ["bad", "fair", "good", "never there", "never said", "neither"]


def answers(count: int = 200) -> tuple[list[int], list[int]]:
    chance = random.Random(3)
    there = chance.choices([0, 1, 2, 4], weights=[5, 2, 9, 1], k=count)
    said = [label if label != 4 and chance.random() < 0.7 else chance.choice([0, 1, 2, 3]) for label in there]
    return there, said


def test_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import classification_report, confusion_matrix, f1_score

    there, said = answers()
    found = report_of(confusion_of(there, said, len(NAMES)), NAMES)
    numbers = range(len(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shares of nothing
        theirs = classification_report(there, said, labels=list(numbers), target_names=NAMES, output_dict=True)
    for score in found.classes:
        expected = theirs[score.name]
        assert (score.precision, score.recall, score.f1, score.there) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"], expected["support"])
        )
    assert [list(row) for row in found.confusion] == confusion_matrix(there, said, labels=list(numbers)).tolist()
    assert found.accuracy == pytest.approx(sum(map(int.__eq__, there, said)) / len(there))
    assert found.macro_f1 == pytest.approx(f1_score(there, said, average="macro", zero_division=0))
    assert found.weighted_f1 == pytest.approx(f1_score(there, said, average="weighted", zero_division=0))
    assert found.examples == len(there)


def test_the_mean_is_that_of_the_loop() -> None:
    from megatrain.tasks.classification import macro_f1

    there, said = answers()
    found = report_of(confusion_of(there, said, len(NAMES)), NAMES)
    counts = [
        [float(found.confusion[n][n]), float(score.said), float(score.there)] for n, score in enumerate(found.classes)
    ]
    assert found.macro_f1 == pytest.approx(macro_f1(counts))


def test_nothing_has_scores_of_zero() -> None:
    found = report_of(confusion_of([], [], 2), ["a", "b"])
    assert (found.accuracy, found.macro_f1, found.weighted_f1, found.examples) == (0.0, 0.0, 0.0, 0)
