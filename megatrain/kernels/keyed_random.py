"""Random numbers that are a function of where they are used, and dropout by them.

A generator with a state would make other numbers on other layouts, and in a forward pass that is made again. Here a
number is a hash of keys: of its position in the run's data, of its place in the model, and of its channel. Nothing is
kept for the backward pass but the keys of the positions, and a compiler fuses it with what stands around it.

Keys are whole numbers below 2^32, as int64, whose products then have 63 bits at most.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

BITS = 32
_LOW = (1 << BITS) - 1
Number = TypeVar("Number", int, Tensor)


def mixed(x: Number) -> Number:
    """A hash of each number: two rounds of multiplication and shift, as in the H2 database (MathUtils, hash32)."""
    x = ((x >> 15) ^ x) * 0x2C1B3C6D & _LOW
    x = ((x >> 12) ^ x) * 0x297A2D39 & _LOW
    return (x >> 15) ^ x


def random_bits(keys_BS: Tensor, site: Tensor, channels: int) -> Tensor:
    """Int64 [B, S, D], evenly distributed below 2^32.

    Args:
        keys_BS: of each position.
        site: [], of the place in the model.
    """
    channels_D = mixed(mixed(torch.arange(1, channels + 1, device=keys_BS.device)) ^ site)
    return mixed(keys_BS[..., None] ^ channels_D)


def uniform(keys_BS: Tensor, site: Tensor, channels: int) -> Tensor:
    """Fp32 [B, S, D], evenly distributed over [-1, 1]."""
    return random_bits(keys_BS, site, channels).float() * (2.0 / (1 << BITS)) - 1.0


def dropout(x_BSD: Tensor, keys_BS: Tensor, site: Tensor, probability: float) -> Tensor:
    """Zero where a number's bits say so, else x / (1 - probability) (Srivastava et al. 2014); of x's dtype."""
    out: Tensor = _Dropout.apply(x_BSD, keys_BS, site, probability)
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSD: Tensor, keys_BS: Tensor, site: Tensor, probability: float) -> Tensor:
        ctx.save_for_backward(keys_BS, site)
        ctx.probability = probability
        return _dropped(x_BSD, keys_BS, site, probability)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        keys_BS, site = ctx.saved_tensors
        return _dropped(grads[0], keys_BS, site, ctx.probability), None, None, None


def _dropped(x_BSD: Tensor, keys_BS: Tensor, site: Tensor, probability: float) -> Tensor:
    kept = random_bits(keys_BS, site, x_BSD.shape[-1]) >= round(probability * (1 << BITS))
    return torch.where(kept, x_BSD * (1.0 / (1.0 - probability)), 0.0)
