"""A section -> the module of its family, with its adapter."""

import torch
from torch import nn

from megatrain.adapters.registry import ADAPTERS
from megatrain.base.registry import load_object
from megatrain.model.architecture import ModelSection, row_of, rows
from megatrain.model.family import FAMILIES


def build_model(section: ModelSection, *, connected: bool = True) -> nn.Module:
    """The whole model, on torch's default device: inside `torch.device("meta")` nothing is allocated.

    What is not trained has `requires_grad` False. An adapter's own weights are always on the meta device.

    Args:
        connected: whether `connect_adapters` is done, too.
    """
    model: nn.Module = load_object(FAMILIES.get(section.family).module)(section)
    if section.adapter is not None:
        add_adapter(model, section)
        if connected:
            connect_adapters(model)
    if section.freezes:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(row_of(section, name).trained)
    return model


def add_adapter(model: nn.Module, section: ModelSection) -> None:
    """Replace the linear layers that the table has an adapter's rows for, or give sublayers a module `adapter`."""
    assert section.adapter is not None
    spec = ADAPTERS.get(section.adapter.name)
    adapted = load_object(spec.module or spec.behind)
    for row in rows(section):
        if not row.of_adapter:
            continue
        for layer in row.layers or ():
            name = row.name.format(layer).rpartition(".")[0]
            if spec.behind:
                sublayer = model.get_submodule(name.partition(".adapter.")[0])
                if not hasattr(sublayer, "adapter"):
                    with torch.device("meta"):
                        sublayer.adapter = adapted(section.adapter, section.hidden_size)
                continue
            linear = model.get_submodule(name)
            if type(linear) is nn.Linear:  # else another of its rows came first
                model.set_submodule(name, adapted(section.adapter, linear))


def connect_adapters(model: nn.Module) -> None:
    """What a sublayer with an `adapter` gives goes through that: after all else that is attached to the sublayer so
    far, such as the sum over tensor-parallel ranks."""
    for module in model.modules():
        if isinstance(getattr(module, "adapter", None), nn.Module):
            module.register_forward_hook(lambda sublayer, inputs, output: sublayer.adapter(output))
