"""Rotary position embedding (arXiv 2104.09864), in the half-split channel order of Llama's published weights."""

import math

import torch
from torch import Tensor

from megatrain.model.families.llama.section import RopeScaling


def rotary_table(
    positions_BS: Tensor, head_size: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each fp32 [B, S, 1, K/2].

    They stay in fp32: bf16 cannot tell neighbouring positions apart beyond a few hundred.
    """
    exponents = torch.arange(0, head_size, 2, device=positions_BS.device, dtype=torch.float32) / head_size
    speeds = theta**-exponents  # radians a position
    if scaling is not None:
        speeds = _slowed(speeds, scaling)
    angles = positions_BS[..., None, None].float() * speeds
    return angles.cos(), angles.sin()


def _slowed(speeds_k: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's rule: the fewer turns a channel makes within the original length, the slower, down to 1/factor."""
    turns_k = scaling.original_max_position_embeddings * speeds_k / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_k = ((turns_k - low) / (high - low)).clamp(0, 1)
    return speeds_k * (kept_k + (1 - kept_k) / scaling.factor)


def apply_rotary(x_BSHK: Tensor, cos_BS1k: Tensor, sin_BS1k: Tensor) -> Tensor:
    """Turn channel pairs (i, i + K/2) by their angle; dtype of x."""
    first, second = x_BSHK.float().chunk(2, dim=-1)
    turned = (first * cos_BS1k - second * sin_BS1k, second * cos_BS1k + first * sin_BS1k)
    return torch.cat(turned, dim=-1).to(x_BSHK.dtype)


def apply_rotary_reference(x_BSHK: Tensor, cos_BS1k: Tensor, sin_BS1k: Tensor) -> Tensor:
    """The same rotation as a product of complex numbers."""
    first, second = x_BSHK.float().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cos_BS1k, sin_BS1k)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x_BSHK.dtype)
