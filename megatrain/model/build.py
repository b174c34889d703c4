"""A section -> the module of its family, with its adapter."""

from torch import nn

from megatrain.adapters.registry import ADAPTERS
from megatrain.base.registry import load_object
from megatrain.model.architecture import FAMILIES, ModelSection, row_of, rows


def build_model(section: ModelSection) -> nn.Module:
    """The whole model, on torch's default device: inside `torch.device("meta")` nothing is allocated.

    What is not trained has `requires_grad` False. An adapter's own weights are always on the meta device.
    """
    model: nn.Module = load_object(FAMILIES.get(section.family).module)(section)
    if section.adapter is not None:
        add_adapter(model, section)
    if section.freezes:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(row_of(section, name).trained)
    return model


def add_adapter(model: nn.Module, section: ModelSection) -> None:
    """Replace the linear layers that the table has an adapter's rows for."""
    assert section.adapter is not None
    adapted = load_object(ADAPTERS.get(section.adapter.name).module)
    for row in rows(section):
        if not row.of_adapter:
            continue
        for layer in row.layers or ():
            name = row.name.format(layer).rpartition(".")[0]
            linear = model.get_submodule(name)
            if type(linear) is nn.Linear:  # else another of its rows came first
                model.set_submodule(name, adapted(section.adapter, linear))
