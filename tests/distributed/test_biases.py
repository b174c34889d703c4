"""Tensor parallelism of biases, and of weights that every rank applies to its own heads.

A bias of a row-parallel layer is added once, after the sum over ranks. A norm of heads is whole on every rank, but its
gradient is a part there, which has to be summed, and once only.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from megatrain.model.architecture import ModelSection
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

EXTENSION = Path(__file__).parents[1] / "extension"


def a_toy() -> tuple[nn.Module, ModelSection]:
    """Of the family with biases in tests/extension."""
    if str(EXTENSION) not in sys.path:
        sys.path.insert(0, str(EXTENSION))
    from toy.family import ToySection
    from toy.module import Toy

    section = ToySection(num_hidden_layers=1, hidden_size=16, heads=4, vocab_size=128)
    return Toy(section), section


def a_llama() -> tuple[nn.Module, ModelSection]:
    """With biases on queries, keys and values, and norms of heads."""
    from megatrain.model.families.llama.module import Llama
    from megatrain.model.families.llama.section import LlamaSection

    section = LlamaSection(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
        vocab_size=128, attention_bias=True, qk_norm=True,
    )  # fmt: skip
    return Llama(section), section


MODELS = {"toy": a_toy, "llama": a_llama}


def loss_and_gradients(name: str, sequence_parallel: bool | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one of MODELS; under tensor parallelism unless None. Slices are joined."""
    from megatrain.parallel.tensor_parallel import apply_tensor_parallel, shard_of, sum_replicated_gradients

    torch.manual_seed(0)
    model, section = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    if sequence_parallel is not None:
        apply_tensor_parallel(model, section, dist.group.WORLD, sequence_parallel=sequence_parallel)
        sum_replicated_gradients(model, section, dist.group.WORLD, sequence_parallel=sequence_parallel)
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["tensor", "sequence"])
def test_gradients_under_tensor_parallelism_are_those_of_the_plain_model(
    ranks: RankPool, name: str, sequence_parallel: bool
) -> None:
    ((expected_loss, expected),) = ranks.run(1, loss_and_gradients, name, None)
    for loss, gradients in ranks.run(2, loss_and_gradients, name, sequence_parallel):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(gradients[name]), torch.tensor(gradient), rtol=1e-4, atol=1e-4)
