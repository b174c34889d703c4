"""Hooks of dropout and NEFTune on plain models of each family, eager and compiled, recomputed or not."""

import math
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn

import megatrain.config  # noqa: F401 - registers the families
from megatrain.data.loading.batch import Batch
from megatrain.kernels.keyed_random import random_bits, uniform
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.build import build_model
from megatrain.model.family import FAMILIES
from megatrain.model.initialization import initial_weight, materialize
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks
from megatrain.perturbation.attach import NoiseAmounts, attach_noise
from megatrain.perturbation.noise import Noise, Place
from tests.parallel.test_compile import Graphs

WIDTH = 24
SIZES: dict[str, Any] = {
    "num_hidden_layers": 3, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64,
    "initializer_range": 0.3,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"gemma3": {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 4}}
NAMES = ("llama", "gpt", "bert", "modernbert", "gemma3")
BATCH = Batch(
    torch.arange(32).view(2, 16),
    torch.arange(1, 33).view(2, 16),
    torch.arange(16).repeat(2, 1),
    torch.tensor([0, 5, 16, 32], dtype=torch.int32),
)


def section_of(family: str) -> ModelSection:
    kind = FAMILIES.get(family).section
    fields = SIZES | MORE.get(family, {})
    return kind.model_validate({name: value for name, value in fields.items() if name in kind.model_fields})


def noisy(family: str, amounts: NoiseAmounts) -> tuple[nn.Module, Noise]:
    section, noise = section_of(family), Noise(5)
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, _: initial_weight(row_of(section, name), 5))
    attach_noise(model, section, noise, amounts, "cpu")
    return model, noise


def loss_of(model: nn.Module) -> Tensor:
    loss: Tensor = model(BATCH.input_ids, BATCH.labels, position_ids_BS=BATCH.position_ids, cu_seqlens=BATCH.cu_seqlens)
    return loss


def stepped(model: nn.Module, noise: Noise, step: int = 0) -> tuple[float, list[Tensor]]:
    """Loss and gradients of a training step."""
    model.zero_grad()
    noise.begin(BATCH, Place(step, 0))
    loss = loss_of(model)
    loss.backward()
    noise.end()
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def test_it_stands_where_a_layer_is_added_to_the_stream_and_before_the_first_block() -> None:
    model, noise = noisy("llama", NoiseAmounts(dropout=0.3, embedding_dropout=0.2))
    seen: dict[str, Tensor] = {}
    for name in ("embedding", "blocks.0", "blocks.0.attention", "blocks.0.mlp"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    output = model.blocks[0].attention.output
    output.register_forward_hook(lambda module, inputs, output: seen.update({"whole": output}))
    noise.begin(BATCH, Place(0, 0))
    loss_of(model)
    sites = {module.noise_site.item() for module in model.modules() if hasattr(module, "noise_site")}
    assert len(sites) == 6, "each layer draws other numbers"
    entering = masked(seen["embedding"], noise, "blocks", 0.2)
    attended = masked(seen["whole"], noise, "blocks.0.attention", 0.3)
    assert torch.allclose(seen["blocks.0.attention"], attended)
    assert torch.allclose(seen["blocks.0"], entering + attended + seen["blocks.0.mlp"], atol=1e-6)


def masked(x: Tensor, noise: Noise, site: str, probability: float) -> Tensor:
    """The reference."""
    assert noise.keys_BS is not None
    bits = random_bits(noise.keys_BS, torch.tensor(crc32(site.encode())), x.shape[-1])
    return x * (bits >= probability * 2**32) / (1 - probability)


def test_neftune_is_uniform_noise_by_the_length_of_the_example() -> None:
    model, noise = noisy("llama", NoiseAmounts(neftune=5.0))
    clean = model.embedding(BATCH.input_ids)
    noise.begin(BATCH, Place(0, 0))
    added = model.embedding(BATCH.input_ids) - clean
    assert noise.keys_BS is not None
    expected = uniform(noise.keys_BS, torch.tensor(crc32(b"embedding")), WIDTH)
    for (row, part), length in zip([(0, slice(0, 5)), (0, slice(5, 16)), (1, slice(0, 16))], (5, 11, 16), strict=True):
        bound = 5.0 / math.sqrt(length * WIDTH)
        assert torch.allclose(added[row, part], expected[row, part] * bound, atol=1e-6)
        assert 0.9 * bound < added[row, part].abs().max() <= bound


@pytest.mark.parametrize("family", NAMES)
def test_a_step_is_repeatable_recomputed_or_not_and_evaluation_is_undisturbed(family) -> None:
    amounts = NoiseAmounts(dropout=0.3, embedding_dropout=0.2, neftune=5.0)
    model, noise = noisy(family, amounts)
    plain, _ = noisy(family, NoiseAmounts())
    loss, gradients = stepped(model, noise)
    assert loss_of(model).item() == loss_of(plain).item() != loss
    assert stepped(model, noise, 1)[0] != loss
    again, same = stepped(model, noise)
    assert again == loss
    assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))
    for mode in ("selective", "full"):
        recomputing, its = noisy(family, amounts)
        apply_activation_checkpointing(recomputing, mode)
        found, theirs = stepped(recomputing, its)
        assert found == loss
        assert all(torch.equal(one, other) for one, other in zip(gradients, theirs, strict=True)), mode


@pytest.mark.parametrize("mode", ["none", pytest.param("selective", marks=pytest.mark.full), "full"])
def test_compiled_blocks_share_one_graph_with_the_same_mask(mode) -> None:
    torch._dynamo.reset()
    amounts = NoiseAmounts(dropout=0.3, neftune=5.0)
    loss, gradients = stepped(*noisy("llama", amounts))
    model, noise = noisy("llama", amounts)
    graphs = Graphs()
    apply_activation_checkpointing(model, mode)
    compile_blocks(model, graphs.backend)
    for step in (1, 2, 0):
        found, theirs = stepped(model, noise, step)
    assert found == pytest.approx(loss, rel=1e-6)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(gradients, theirs, strict=True))
    assert (len(graphs.forward), len(graphs.backward)) == (1, 1)
    torch._dynamo.reset()
