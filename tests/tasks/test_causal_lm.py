import torch

from megatrain.data.loading.batch import IGNORE_INDEX, without_targets
from megatrain.tasks.causal_lm import CausalLM


class Uniform:
    """A model whose loss is 2 nats for every label."""

    def __call__(self, input_ids, labels, *, position_ids_BS, cu_seqlens):
        assert input_ids.shape == labels.shape == position_ids_BS.shape
        return 2.0 * (labels != IGNORE_INDEX).sum()


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
