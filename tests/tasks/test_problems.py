"""Evaluations of several labels and of numbers, worked out by the definitions of scikit-learn and SciPy."""

import pytest
import torch

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.monitor.metric import METRICS
from megatrain.tasks.class_names import MOST_LABELS
from megatrain.tasks.class_report import ClassReport
from megatrain.tasks.class_weights import class_weights, weight_issues
from megatrain.tasks.classification import Classification
from megatrain.tasks.sequence_classification.multi_label import MultiLabel
from megatrain.tasks.sequence_classification.regression import Regression, pearson, ranks

LABELS = torch.tensor([[0, IGNORE_INDEX, 1], [2, IGNORE_INDEX, 3]])


def batch(targets: list[list[float]]) -> Batch:
    ids = torch.zeros_like(LABELS)
    return Batch(ids, LABELS, ids, example_targets=torch.tensor(targets))


def model(logits: list[list[float]]):
    """One that says so at the labelled positions, and nonsense elsewhere."""
    said = torch.full((2, 3, len(logits[0])), 99.0)
    said[LABELS != IGNORE_INDEX] = torch.tensor(logits)
    return lambda ids, labels, **places: said


def test_several_labels() -> None:
    objective = MultiLabel(("a", "b/c", "d"))
    there = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    said = [[2.0, -1.0, -3.0], [2.0, -1.0, -2.0], [-1.0, -1.0, -1.0], [1.0, 1.0, -1.0]]
    sums = objective.evaluation_sums(model(said), batch(there))
    found = objective.evaluation_metrics({name: float(value) for name, value in sums.items()})
    assert found["micro_f1"] == pytest.approx(0.75)
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert found["accuracy"] == 0.5
    assert (found["precision/a"], found["recall/a"]) == (pytest.approx(2 / 3), 1.0)
    assert (found["precision/b/c"], found["recall/b/c"], found["f1/d"]) == (1.0, 0.5, 0.0)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(said), torch.tensor(there))
    assert found["validation_loss"] == pytest.approx(loss.item())
    assert found["validation_examples"] == 4
    assert METRICS.get("f1/b/c").tag == "validation_f1/b/c"


def test_numbers() -> None:
    objective = Regression()
    sums = objective.evaluation_sums(model([[1.0], [2.5], [2.5], [8.0]]), batch([[1.0], [2.0], [4.0], [3.0]]))
    sums |= {"examples": float(sums["examples"])}
    found = objective.evaluation_metrics(sums)
    x, y = torch.tensor([1.0, 2.5, 2.5, 8.0]).double(), torch.tensor([1.0, 2.0, 4.0, 3.0]).double()
    assert found["mse"] == found["validation_loss"] == pytest.approx((0.25 + 2.25 + 25) / 4)
    assert found["mae"] == pytest.approx((0.5 + 1.5 + 5) / 4)
    assert found["pearson"] == pytest.approx(float(torch.corrcoef(torch.stack((x, y)))[0, 1]))
    assert ranks(x).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert found["spearman"] == pytest.approx(3 / (4.5 * 5) ** 0.5)


def test_a_correlation_with_what_is_constant_is_nothing() -> None:
    assert pearson(torch.ones(3).double(), torch.arange(3).double()) == 0.0
    assert pearson(torch.ones(1).double(), torch.ones(1).double()) == 0.0
    offset = torch.tensor([1e9, 1e9 + 1, 1e9 + 2], dtype=torch.float64)
    assert pearson(offset, torch.arange(3).double()) == pytest.approx(1.0)


def test_a_batch_without_labels_counts_nothing() -> None:
    ids = torch.zeros(1, 3, dtype=torch.long)
    nothing = Batch(ids, torch.full((1, 3), IGNORE_INDEX), ids)
    say = lambda ids, labels, **places: torch.ones(1, 3, 2)  # noqa: E731
    assert set(map(float, MultiLabel(("a", "b")).evaluation_sums(say, nothing).values())) == {0.0}
    one = lambda ids, labels, **places: torch.ones(1, 3, 1)  # noqa: E731
    sums = Regression().evaluation_sums(one, nothing)
    assert sums["pairs"].shape == (0, 2)
    assert Regression().evaluation_metrics({"examples": 0.0, "pairs": sums["pairs"]})["mse"] == 0.0


def test_each_label_of_one_is_reported() -> None:
    found = Classification(3, names=("no", "yes", "maybe")).evaluation_metrics(
        {"loss": 0.0} | {f"{kind} {label}": float(n) for kind, numbers in
         (("right", (3, 1, 0)), ("said", (4, 2, 0)), ("there", (3, 3, 0))) for label, n in enumerate(numbers)}
    )  # fmt: skip
    assert (found["precision/no"], found["recall/no"], found["f1/no"]) == (0.75, 1.0, pytest.approx(6 / 7))
    assert (found["precision/yes"], found["recall/yes"]) == (0.5, pytest.approx(1 / 3))
    assert found["f1/maybe"] == 0.0
    assert METRICS.get("f1/yes").console is None, "they would not fit on a line"


def test_names_that_charts_cannot_tell_apart() -> None:
    ClassReport(("x?", "x!"))
    assert METRICS.get("f1/x?").tag != METRICS.get("f1/x!").tag
    assert ClassReport(["many"] * (MOST_LABELS + 1)).values([[1, 1, 1]] * (MOST_LABELS + 1)) == {}


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    """examples / (labels · examples of the label)."""
    assert class_weights("balanced", ("a", "b", "c"), {"a": 6, "b": 2, "c": 1}) == [0.5, 1.5, 3.0]
    assert class_weights("balanced", ("a", "b", "c"), {"a": 6, "b": 2}) == [8 / 12, 2.0, 0.0]
    assert class_weights({"b": 4.0}, ("a", "b"), {}) == [1.0, 4.0]
    assert class_weights(None, ("a", "b"), {}) is None
    assert "is not one of the labels" in next(weight_issues({"z": 1.0}, ("a", "b")))[2]
    assert "nothing would be learnt" in next(weight_issues({"a": 0.0, "b": 0.0}, ("a", "b")))[2]
