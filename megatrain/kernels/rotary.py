"""Rotary position embedding (arXiv 2104.09864), in the half-split channel order of Llama's published weights."""

import math

import torch
from torch import Tensor

from megatrain.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


def rotary_table(
    positions_BS: Tensor, head_size: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles, each fp32 [B, S, 1, K/2].

    They stay in fp32: bf16 cannot tell neighbouring positions apart beyond a few hundred.
    """
    exponents = torch.arange(0, head_size, 2, device=positions_BS.device, dtype=torch.float32) / head_size
    speeds = theta**-exponents  # radians a position
    size = 1.0
    match scaling:
        case Llama3Scaling():
            speeds = _llama3(speeds, scaling)
        case LinearScaling():
            speeds = speeds / scaling.factor
        case YarnScaling():
            speeds, size = _yarn(speeds, scaling, theta), _attention_factor(scaling)
    angles = positions_BS[..., None, None].float() * speeds
    return angles.cos() * size, angles.sin() * size


def _llama3(speeds_k: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule: the fewer turns a channel makes within the original length, the slower, down to 1/factor."""
    turns_k = scaling.original_max_position_embeddings * speeds_k / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_k = ((turns_k - low) / (high - low)).clamp(0, 1)
    return speeds_k * (kept_k + (1 - kept_k) / scaling.factor)


def _yarn(speeds_k: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """NTK by parts (arXiv 2309.00071, definition 2), the ramp over channel numbers as in its authors' code."""
    channels = len(speeds_k)

    def channel(turns: float) -> float:
        """That makes so many turns in the original length."""
        length = scaling.original_max_position_embeddings
        return channels * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * channels - 1)
    numbers = torch.arange(channels, device=speeds_k.device, dtype=torch.float32)
    slowed_k = ((numbers - first) / (last - first or 0.001)).clamp(0, 1)
    return speeds_k * (1 - slowed_k) + speeds_k / scaling.factor * slowed_k


def _attention_factor(scaling: YarnScaling) -> float:
    """arXiv 2309.00071, equation 22."""
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


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
