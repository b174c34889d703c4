"""Layers that families share. D hidden size, B batch, S sequence."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatrain.kernels.rms_norm import rms_norm
from megatrain.kernels.swiglu import swiglu


def scaled(x: Tensor, factor: float) -> Tensor:
    """Times a number that is part of the model; nothing is done for 1."""
    return x if factor == 1.0 else x * factor


class SumOverInputs(nn.Module):
    """What it is given is a sum over all inputs of the linear layer that it is in. Of a layer that is split by input,
    tensor parallelism adds up what the ranks have. It has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """The gated MLP of arXiv 2002.05202."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, width, bias=False)
        self.up = nn.Linear(hidden_size, width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.down(swiglu(self.gate(x_BSD), self.up(x_BSD)))
        return out


class GeGLU(nn.Module):
    """The MLP gated by a GELU, exact or approximated, of arXiv 2002.05202."""

    def __init__(self, hidden_size: int, width: int, gelu: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.gelu = gelu
        self.gate = nn.Linear(hidden_size, width, bias=False)
        self.up = nn.Linear(hidden_size, width, bias=False)
        self.down = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.down(self.gelu(self.gate(x_BSD)) * self.up(x_BSD))
        return out


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(
        self, hidden_size: int, width: int, activation: Callable[[Tensor], Tensor], *, bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, width, bias=bias)
        self.down = nn.Linear(width, hidden_size, bias=bias)
        self.activation = activation

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x_BSD)))
        return out
