"""Tensor parallelism of linear layers with biases: a row-parallel one is added once, after the sum over ranks."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

EXTENSION = Path(__file__).parents[1] / "extension"


def loss_and_gradients(sequence_parallel: bool | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the family with biases in tests/extension; under tensor parallelism unless None. Slices are joined."""
    from megatrain.parallel.tensor_parallel import apply_tensor_parallel, shard_of, sum_replicated_gradients

    if str(EXTENSION) not in sys.path:
        sys.path.insert(0, str(EXTENSION))
    from toy.family import ToySection
    from toy.module import Toy

    section = ToySection(num_hidden_layers=1, hidden_size=16, heads=4, vocab_size=128)
    torch.manual_seed(0)
    model = Toy(section)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    if sequence_parallel is not None:
        apply_tensor_parallel(model, section, dist.group.WORLD, sequence_parallel=sequence_parallel)
        if sequence_parallel:
            sum_replicated_gradients(model, dist.group.WORLD)
    ids = torch.arange(16).view(2, 8)
    loss = model(ids, ids.roll(-1, 1))
    loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        shard, gradient = shard_of(parameter), parameter.grad
        if shard is not None:
            parts = [torch.empty_like(gradient) for _ in range(shard.count)]
            dist.all_gather(parts, gradient.contiguous())
            gradient = torch.cat(parts, shard.dim)
        gradients[name] = gradient.tolist()
    return loss.item(), gradients


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tensor", "sequence"])
def test_biases_under_tensor_parallelism_are_those_of_the_plain_model(ranks: RankPool, sequence_parallel: bool) -> None:
    ((expected_loss, expected),) = ranks.run(1, loss_and_gradients, None)
    for loss, gradients in ranks.run(2, loss_and_gradients, sequence_parallel):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(gradients[name]), torch.tensor(gradient), rtol=1e-4, atol=1e-4)
