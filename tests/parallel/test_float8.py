"""Which linear layers multiply in fp8, and that they compute what two rounded operands give."""

import copy

import pytest
import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.model.build import build_model
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.float8 import apply_float8, float8_layers

SECTION = LlamaSection(
    num_hidden_layers=1, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
    vocab_size=128,
)  # fmt: skip
GPT = GPTSection(num_hidden_layers=1, hidden_size=64, num_attention_heads=4, vocab_size=128)
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def model_of(section=SECTION, dtype=torch.bfloat16) -> nn.Module:
    model = build_model(section)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.to(dtype)


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(1))
    loss = model(ids, ids.roll(-1, 1))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_every_linear_layer_of_a_block_and_no_other() -> None:
    model = model_of()
    names = [name for name, _ in model.named_parameters()]
    swapped = apply_float8(model, SECTION, "tensorwise", emulate=True)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(swapped) == linear
    assert {type(model.get_submodule(name)).__name__ for name in swapped} == {"Float8Linear"}
    assert [name for name, _ in model.named_parameters()] == names


def test_layers_whose_slices_a_tile_does_not_divide_stay_as_they_are() -> None:
    # over 4 ranks: key and value have 8 columns, the MLP 24
    assert set(float8_layers(model_of(), SECTION, 4)) == {"blocks.0.attention.query", "blocks.0.attention.output"}
    assert len(set(float8_layers(model_of(), SECTION, 2))) == 7


def rounded(x: Tensor, dtype: torch.dtype, dim: int | None) -> Tensor:
    """To fp8 and back, with the scale of the tensor, or of each vector along `dim`; powers of two for these."""
    amax = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = LARGEST[dtype] / amax.double().clamp(min=1e-12)
    scale = scale.float() if dim is None else torch.exp2(torch.floor(torch.log2(scale))).float()
    return (x.float() * scale).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).float() / scale


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_products_of_rounded_operands(scaling) -> None:
    """Forward, gradient of the input, gradient of the weight, against the same products in fp32."""
    model = model_of()
    apply_float8(model, SECTION, scaling, emulate=True)
    linear = model.get_submodule("blocks.0.mlp.down")
    x = torch.randn(48, 96, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    upstream = torch.randn(48, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    out = linear(x)
    of_x, of_weight = torch.autograd.grad(out, (x, linear.weight), upstream)

    e4m3 = torch.float8_e4m3fn
    back = e4m3 if scaling == "rowwise" else torch.float8_e5m2
    along = (lambda dim: dim) if scaling == "rowwise" else (lambda dim: None)  # the dimension that is summed over
    w = linear.weight
    expected = rounded(x, e4m3, along(1)) @ rounded(w, e4m3, along(1)).T
    expected_x = rounded(upstream, back, along(1)) @ rounded(w, e4m3, along(0))
    expected_weight = rounded(upstream, back, along(0)).T @ rounded(x, e4m3, along(0))
    for got, wanted in ((out, expected), (of_x, expected_x), (of_weight, expected_weight)):
        assert (got.float() - wanted).norm() < 4e-3 * wanted.norm()  # that of rounding the result to bf16
    plain = x.float() @ w.float().T
    assert 1e-2 < (out.float() - plain).norm() / plain.norm() < 6e-2


@pytest.mark.parametrize("section", [SECTION, GPT], ids=["llama", "gpt"])
def test_a_loss_near_that_in_bf16(section) -> None:
    model = model_of(section)
    expected, _ = step(copy.deepcopy(model))
    assert apply_float8(model, section, "tensorwise", emulate=True)
    loss, gradients = step(model)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    assert loss.item() != expected.item()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputing_changes_no_bit(mode) -> None:
    outcomes = []
    for recompute in ("none", mode):
        model = model_of()
        apply_float8(model, SECTION, "rowwise", emulate=True)
        apply_activation_checkpointing(model, recompute)
        outcomes.append(step(model))
    (loss, gradients), (again, gradients_again) = outcomes
    assert torch.equal(loss, again)
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())


def test_a_block_is_one_graph() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = model_of()
    apply_float8(model, SECTION, "tensorwise", emulate=True)
    expected, _ = step(copy.deepcopy(model))
    compile_blocks(model, backend=count)
    loss, _ = step(model)
    assert len(graphs) == 1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_torchao_is_named_where_it_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"pip install 'megatrain\[fp8\]'"):
        apply_float8(model_of(), SECTION, "tensorwise")
