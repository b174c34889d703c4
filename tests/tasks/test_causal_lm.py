import torch

from megatrain.data.loading.batch import IGNORE_INDEX, without_targets
from megatrain.kernels.cross_entropy import LossTerms
from megatrain.tasks.causal_lm import CausalLM


class Uniform:
    """A model whose cross-entropy is 2 nats for every label, and its loss with terms 3."""

    def __call__(self, input_ids, labels, *, position_ids_BS, cu_seqlens, terms=None):
        assert input_ids.shape == labels.shape == position_ids_BS.shape
        count = (labels != IGNORE_INDEX).sum()
        return 2.0 * count if terms is None else (3.0 * count, 2.0 * count)


def test_loss_and_targets_of_labels_only() -> None:
    batch = without_targets(2, 4, attend_across_documents=False)
    batch.labels[0, :3] = 1
    assert CausalLM().loss(Uniform(), batch) == (torch.tensor(6.0), {})
    assert CausalLM().evaluation_sums(Uniform(), batch) == {"loss": torch.tensor(6.0), "targets": torch.tensor(3)}


def test_the_validation_loss_is_per_target() -> None:
    assert CausalLM().evaluation_metrics({"loss": 6.0, "targets": 3.0}) == {
        "validation_loss": 2.0,
        "validation_targets": 3.0,
    }


def test_terms_are_in_the_loss_of_training_and_not_in_that_of_an_evaluation() -> None:
    batch = without_targets(2, 4, attend_across_documents=False)
    batch.labels[0, :3] = 1
    task = CausalLM(LossTerms(z_loss=1e-4))
    assert task.loss(Uniform(), batch) == (torch.tensor(9.0), {"cross_entropy": torch.tensor(6.0)})
    assert task.evaluation_sums(Uniform(), batch) == {"loss": torch.tensor(6.0), "targets": torch.tensor(3)}
