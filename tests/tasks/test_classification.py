"""What a classifier's evaluation counts, and what it makes of it."""

import pytest
import torch

from megatrain.data.loading.batch import IGNORE_INDEX, Batch
from megatrain.tasks.classification import Classification, macro_f1

LABELS = torch.tensor([[0, IGNORE_INDEX, 1, 2], [0, 1, IGNORE_INDEX, 2]])


def model(said: torch.Tensor):
    """One that says so, whatever it is given."""
    return lambda ids, labels, **places: torch.nn.functional.one_hot(said, 4).float()


def batch() -> Batch:
    ids = torch.zeros_like(LABELS)
    return Batch(ids, LABELS, ids)


def metrics_of(said: list[list[int]]) -> dict[str, float]:
    objective = Classification(4)
    sums = objective.evaluation_sums(model(torch.tensor(said)), batch())
    return objective.evaluation_metrics({name: float(value) for name, value in sums.items()})


def test_metrics_are_those_of_the_example_in_scikit_learns_documentation() -> None:
    """f1_score([0, 1, 2, 0, 1, 2], [0, 2, 1, 0, 0, 1], average="macro"): 0.267. The fourth label does not occur."""
    found = metrics_of([[0, 3, 2, 1], [0, 0, 3, 1]])
    assert found["macro_f1"] == pytest.approx(0.26666666666666666)
    assert found["accuracy"] == pytest.approx(2 / 6)
    assert found["validation_examples"] == 6
    wrong, right = (torch.nn.functional.cross_entropy(torch.eye(4)[:1], torch.tensor([label])) for label in (1, 0))
    assert found["validation_loss"] == pytest.approx(float(4 * wrong + 2 * right) / 6)


def test_a_label_that_is_said_and_never_there_counts() -> None:
    assert macro_f1([[2, 2, 2], [0, 1, 0], [0, 0, 0]]) == pytest.approx(0.5)
    assert macro_f1([]) == 0.0


def test_a_batch_without_labels_counts_nothing() -> None:
    nothing = Batch(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), IGNORE_INDEX), torch.zeros(1, 3))
    sums = Classification(4).evaluation_sums(model(torch.zeros(1, 3, dtype=torch.long)), nothing)
    assert set(map(float, sums.values())) == {0.0}
