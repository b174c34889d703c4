"""The layer of DoRA computes its formula, and merging gives the weight that it stands for."""

import pytest
import torch

from megatrain.adapters.dora import MAGNITUDE, DoraSection
from megatrain.adapters.dora.module import DoraLinear, for_peft, merge, with_dora
from megatrain.model.architecture import parameter_table
from megatrain.model.build import build_model
from tests.adapters.test_lora import MODELS

SECTION = DoraSection(rank=3, alpha=6.0)


def layer_and_tensors(*, bias: bool = True, started: bool = True) -> tuple[DoraLinear, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    layer = with_dora(SECTION, torch.nn.Linear(10, 7, bias=bias))
    tensors = {"lora_a": torch.randn(3, 10), "lora_b": torch.randn(7, 3), MAGNITUDE: torch.randn(7)}
    if started:
        tensors |= {"lora_b": torch.zeros(7, 3), MAGNITUDE: torch.zeros(7)}
    for name, tensor in tensors.items():
        setattr(layer, name, torch.nn.Parameter(tensor))
    return layer, tensors


@pytest.mark.parametrize("family", MODELS)
def test_the_table_is_what_the_module_has(family: str) -> None:
    section = MODELS[family].model_copy(update={"adapter": SECTION})
    with torch.device("meta"):
        parameters = dict(build_model(section).named_parameters())
    table = {row.name: row for row in parameter_table(section)}
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {n: row.shape for n, row in table.items()}
    assert {name for name, p in parameters.items() if p.requires_grad} == {n for n, row in table.items() if row.trained}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_as_the_layer_without_it(dtype: torch.dtype) -> None:
    layer, _ = layer_and_tensors()
    layer.to(dtype)
    x = torch.randn(5, 10, dtype=dtype)
    assert torch.equal(layer.factor(), torch.ones(7))
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), plain, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_it_is_what_the_paper_says_and_its_norm_has_no_gradient() -> None:
    layer, _ = layer_and_tensors(started=False)
    x = torch.randn(5, 10)
    whole = layer.weight + SECTION.scale * layer.lora_b @ layer.lora_a
    magnitude = layer.weight.norm(dim=1) + layer.dora_magnitude
    expected = torch.nn.functional.linear(x, whole * (magnitude / whole.norm(dim=1).detach())[:, None], layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    trained = [layer.lora_a, layer.lora_b, layer.dora_magnitude]
    slope = torch.randn(5, 7)
    ours, theirs = (torch.autograd.grad((out * slope).sum(), trained) for out in (layer(x), expected))
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_merging_gives_the_weight_that_the_layer_stands_for_in_parts_too() -> None:
    layer, tensors = layer_and_tensors(started=False)
    base, x = layer.weight.detach(), torch.randn(5, 10)
    whole = merge(SECTION, tensors, base, (0, 0), lambda: base)
    assert torch.allclose(torch.nn.functional.linear(x, whole, layer.bias), layer(x), atol=1e-5)
    assert torch.equal(merge(SECTION, tensors, base[2:6, 3:8], (2, 3), lambda: base[2:6]), whole[2:6, 3:8])
    stored = for_peft(SECTION, tensors, lambda: base)["lora_magnitude_vector"]
    assert torch.allclose(stored, whole.norm(dim=1), atol=1e-5) or torch.allclose(stored.abs(), whole.norm(dim=1))


def test_an_output_without_weights_stays_finite() -> None:
    layer, tensors = layer_and_tensors()
    with torch.no_grad():
        layer.weight[2] = 0
    out = layer(torch.randn(5, 10))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (layer.lora_a, layer.lora_b, layer.dora_magnitude))
    base = layer.weight.detach()
    assert merge(SECTION, tensors, base, (0, 0), lambda: base).isfinite().all()
