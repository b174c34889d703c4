"""The linear layer of LoRA, and what merging adds to its weight."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.adapters.lora import LowRankSection


class LoraLinear(nn.Linear):
    """A linear layer with `lora_a` [rank, in] and `lora_b` [out, rank] beside its weight; or their slices, of which the
    layer's own tensor-parallel boundary puts the result together."""

    scale: float
    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * product


_Layer = TypeVar("_Layer", bound=LoraLinear)


def with_lora(section: LowRankSection, linear: nn.Linear) -> LoraLinear:
    return low_rank(LoraLinear, section, linear)


def low_rank(kind: type[_Layer], section: LowRankSection, linear: nn.Linear) -> _Layer:
    """The same weight and bias, with A and B that have no values yet."""
    with torch.device("meta"):
        layer = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
    layer.weight, layer.bias = linear.weight, linear.bias
    make = linear.weight.new_empty
    layer.lora_a = nn.Parameter(make(section.rank, linear.in_features))
    layer.lora_b = nn.Parameter(make(linear.out_features, section.rank))
    layer.scale = section.scale
    return layer


def merge(
    section: LowRankSection,
    tensors: Mapping[str, Tensor],
    part: Tensor,
    offsets: Sequence[int],
    rows: Callable[[], Tensor],
) -> Tensor:
    """W + s·B·A, fp32; see `AdapterSpec.merge`."""
    return part + change(section, tensors, offsets, part.shape)


def change(
    section: LowRankSection, tensors: Mapping[str, Tensor], offsets: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """fp32 [sizes] of s·B·A from `offsets` on; multiplied in fp64, so that it does not depend on how a layout cuts the
    weight."""
    (top, left), (height, width) = offsets, sizes
    b = tensors["lora_b"][top : top + height].double()
    a = tensors["lora_a"][:, left : left + width].double()
    return (section.scale * (b @ a)).float()
