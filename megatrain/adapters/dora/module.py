"""The linear layer of DoRA, and what merging makes of its weight."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.adapters.dora import MAGNITUDE, DoraSection
from megatrain.adapters.lora.module import LoraLinear, change, low_rank
from megatrain.adapters.lora.peft_format import renamed
from megatrain.model.layers import SumOverInputs

_SMALLEST = 1e-30  # a square, of an output without weights


class DoraLinear(LoraLinear):
    """A linear layer with `lora_a`, `lora_b` and `dora_magnitude` [out] beside its weight; or their slices."""

    dora_magnitude: nn.Parameter
    sum_over_inputs: SumOverInputs

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(F.linear(x, self.lora_a), self.lora_b)
        out = (F.linear(x, self.weight) + self.scale * product) * self.factor().to(x.dtype)
        return out if self.bias is None else out + self.bias

    def factor(self) -> Tensor:
        """fp32 [out]: the magnitude over the norm."""
        before, after = self.norms()
        return (before + self.dora_magnitude) / after

    @torch.no_grad()
    def norms(self) -> tuple[Tensor, Tensor]:
        """fp32 [out]: ‖W‖, and ‖W + s·B·A‖, of which no matrix of the weight's size is made.

        ‖W + s·B·A‖² = ‖W‖² + Σ over the rank of B ∘ (2s·W·Aᵀ + s²·B·A·Aᵀ)
        """
        b, scale = self.lora_b.float(), self.scale
        with_weight, with_itself = (
            F.linear(self.weight, self.lora_a).float(),
            F.linear(self.lora_a, self.lora_a).float(),
        )
        added = (b * (2 * scale * with_weight + scale**2 * (b @ with_itself))).sum(1)
        before = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32).square()
        squares = self.sum_over_inputs(torch.stack((before, before + added))).clamp_min(_SMALLEST).sqrt()
        return squares[0], squares[1]


def with_dora(section: DoraSection, linear: nn.Linear) -> DoraLinear:
    """The same weight and bias, with A, B and δ that have no values yet."""
    layer = low_rank(DoraLinear, section, linear)
    layer.dora_magnitude = nn.Parameter(linear.weight.new_empty(linear.out_features))
    layer.sum_over_inputs = SumOverInputs()
    return layer


def merge(
    section: DoraSection,
    tensors: Mapping[str, Tensor],
    part: Tensor,
    offsets: Sequence[int],
    rows: Callable[[], Tensor],
) -> Tensor:
    """m / n · (W + s·B·A), fp32; see `AdapterSpec.merge`."""
    (top, _), height = offsets, part.shape[0]
    whole = rows()
    adapted = whole.double() + change(section, tensors, (top, 0), whole.shape)
    before, after = (torch.linalg.vector_norm(one, dim=1, dtype=torch.float64) for one in (whole, adapted))
    magnitude = before + tensors[MAGNITUDE][top : top + height]
    factor = magnitude / after.clamp_min(_SMALLEST**0.5)
    return ((part.double() + change(section, tensors, offsets, part.shape)) * factor[:, None]).float()


def for_peft(section: DoraSection, tensors: Mapping[str, Tensor], weight: Callable[[], Tensor]) -> dict[str, Tensor]:
    """A, B and m under PEFT's names."""
    norms = torch.linalg.vector_norm(weight(), dim=1, dtype=torch.float32)
    return renamed(section, tensors) | {"lora_magnitude_vector": norms + tensors[MAGNITUDE]}
