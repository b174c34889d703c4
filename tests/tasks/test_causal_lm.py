import math

import pytest
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
    expected = {"validation_loss": 2.0, "validation_targets": 3.0, "perplexity": math.exp(2)}
    assert CausalLM().evaluation_metrics({"loss": 6.0, "targets": 3.0}) == expected


def test_bits_per_byte_are_of_the_text_of_the_targets() -> None:
    lengths = [0, 3, 5]
    batch = without_targets(1, 5, attend_across_documents=False)
    batch.labels[0, :4] = torch.tensor([1, 2, 0, 9])  # a special token is no text, an id behind the vocabulary neither
    task = CausalLM(lengths=lengths)
    sums = task.evaluation_sums(lambda ids, labels, **places: torch.tensor(4.0), batch)
    assert sums["bytes"] == 8
    found = task.evaluation_metrics({"loss": 4.0, "targets": 4.0, "bytes": 8.0})
    assert found["bits_per_byte"] == pytest.approx(4 / math.log(2) / 8)


def test_terms_are_in_the_loss_of_training_and_not_in_that_of_an_evaluation() -> None:
    batch = without_targets(2, 4, attend_across_documents=False)
    batch.labels[0, :3] = 1
    task = CausalLM(LossTerms(z_loss=1e-4))
    assert task.loss(Uniform(), batch) == (torch.tensor(9.0), {"cross_entropy": torch.tensor(6.0)})
    assert task.evaluation_sums(Uniform(), batch) == {"loss": torch.tensor(6.0), "targets": torch.tensor(3)}
