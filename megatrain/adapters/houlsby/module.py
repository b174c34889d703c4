"""The layers of a bottleneck adapter."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.adapters.houlsby import HoulsbySection

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Bottleneck(nn.Module):
    """x + up(activation(down(x))), [B, S, width]."""

    def __init__(self, section: HoulsbySection, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, section.bottleneck)
        self.up = nn.Linear(section.bottleneck, width)
        self.activation = _ACTIVATIONS[section.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.up(self.activation(self.down(x)))
        return out
