"""Bottleneck adapters stand behind attention and MLP of every family, and begin as nothing."""

import pytest
import torch

from megatrain.adapters.houlsby import HoulsbySection, issues
from megatrain.model.architecture import parameter_table, rows
from megatrain.model.build import build_model
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.trained import is_linear
from tests.adapters.test_lora import MODELS

SECTION = HoulsbySection(bottleneck=4)


def drawn(family: str, adapter: HoulsbySection | None) -> torch.nn.Module:
    section = MODELS[family].model_copy(update={"adapter": adapter})
    table = {row.name: row for row in parameter_table(section)}
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, p: initial_weight(table[name], 1))
    return model


@pytest.mark.parametrize("family", MODELS)
def test_the_table_is_what_the_module_has_and_the_base_is_what_it_begins_with(family: str) -> None:
    section = MODELS[family].model_copy(update={"adapter": SECTION})
    model = drawn(family, SECTION)
    parameters = dict(model.named_parameters())
    table = {row.name: row for row in parameter_table(section)}
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {n: row.shape for n, row in table.items()}
    own = {name for name, row in table.items() if row.of_adapter}
    assert {name for name, p in parameters.items() if p.requires_grad} == own
    assert len(own) == 3 * 2 * 4  # layers, sublayers, tensors
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(model(ids), drawn(family, None)(ids))
    with torch.no_grad():
        parameters["blocks.1.mlp.adapter.up.weight"].normal_()
    assert not torch.allclose(model(ids), drawn(family, None)(ids), atol=1e-5)


def test_it_is_a_bottleneck_around_what_a_sublayer_gives() -> None:
    model = drawn("llama", HoulsbySection(bottleneck=4, activation="relu", after=("mlp",)))
    mlp = model.get_submodule("blocks.0.mlp")
    assert not hasattr(model.get_submodule("blocks.0.attention"), "adapter")
    with torch.no_grad():
        for p in mlp.adapter.parameters():
            p.normal_()
    x = torch.randn(1, 3, 16)
    plain = mlp.down(torch.nn.functional.silu(mlp.gate(x)) * mlp.up(x))
    down, up = mlp.adapter.down, mlp.adapter.up
    expected = plain + (plain @ down.weight.T + down.bias).clamp(min=0) @ up.weight.T + up.bias
    assert torch.allclose(mlp(x), expected, atol=1e-6)


def test_it_is_never_merged() -> None:
    section = MODELS["llama"].model_copy(update={"adapter": SECTION})
    assert section.has_lasting_adapter
    assert section.complete == section
    assert section.merged == MODELS["llama"]


def test_a_bottleneck_that_is_none_is_refused() -> None:
    linear = tuple(row for row in rows(MODELS["llama"]) if is_linear(row))
    assert list(issues(SECTION, linear)) == []
    found = list(issues(HoulsbySection(bottleneck=17), linear))
    assert found == [("bottleneck", 17, "is wider than the residual stream (16)", "At most 16.")]
