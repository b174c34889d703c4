"""A section -> the module of its family."""

from torch import nn

from megatrain.base.registry import load_object
from megatrain.model.architecture import FAMILIES, ModelSection


def build_model(section: ModelSection) -> nn.Module:
    """The whole model, on torch's default device: inside `torch.device("meta")` nothing is allocated."""
    model: nn.Module = load_object(FAMILIES.get(section.family).module)(section)
    return model
