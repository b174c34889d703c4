"""R-Drop's loss against its definition, example by example."""

import pytest
import torch
import torch.nn.functional as F

from megatrain.data.loading.batch import Batch
from megatrain.kernels.class_loss import ClassWeights
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.r_drop import r_drop_loss, twice


def test_the_rows_stand_twice_as_documents_of_their_own() -> None:
    ids = torch.arange(8).view(2, 4)
    batch = Batch(ids, ids, ids, torch.tensor([0, 3, 4, 8], dtype=torch.int32), whole_labels=ids)
    doubled = twice(batch)
    assert doubled.input_ids.tolist() == ids.tolist() * 2
    assert doubled.cu_seqlens is not None
    assert doubled.cu_seqlens.tolist() == [0, 3, 4, 8, 11, 12, 16]
    assert doubled.cu_seqlens.dtype == torch.int32
    assert doubled.whole_labels is not None
    assert doubled.token_types is None


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_it_is_the_mean_of_both_and_the_divergence_of_one_from_the_other(weights) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3, requires_grad=True)
    labels = torch.tensor([[-100, 0, -100, 2, 1], [1, -100, -100, -100, -100]])
    terms = LossTerms(label_smoothing=0.1) if weights is None else ClassWeights(label_smoothing=0.1, weights=weights)
    loss, extras = r_drop_loss(logits, labels, 4.0, terms)
    expected, divergence = torch.zeros(()), torch.zeros(())
    for row, place in (labels != -100).nonzero().tolist():
        first, second, label = logits[row, place], logits[row + 2, place], labels[row, place]
        for one, other in ((first, second), (second, first)):
            expected = expected + 0.5 * F.cross_entropy(
                one[None], label[None], weights, reduction="sum", label_smoothing=0.1
            )
            kl = F.kl_div(other.log_softmax(-1), one.log_softmax(-1), reduction="sum", log_target=True)
            divergence = divergence + 0.5 * kl * (1.0 if weights is None else weights[label])
    expected = expected + 4.0 * divergence
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert extras["divergence"].item() == pytest.approx(divergence.item(), rel=1e-5)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (reference,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(found, reference, atol=1e-5)


def test_two_predictions_that_agree_cost_nothing() -> None:
    logits, labels = torch.randn(1, 5, 3), torch.tensor([[0, 1, 2, -100, 0]])
    loss, extras = r_drop_loss(logits.repeat(2, 1, 1), labels, 4.0, LossTerms())
    assert extras["divergence"].item() == 0.0
    assert loss.item() == pytest.approx(F.cross_entropy(logits[0], labels[0], reduction="sum").item())
