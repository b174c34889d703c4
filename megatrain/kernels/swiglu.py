"""The gated activation of the MLP (arXiv 2002.05202, equation 6). A compiled block fuses it with its neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise; dtype of the inputs."""
    return F.silu(gate) * up


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(gate) * up
