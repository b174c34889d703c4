"""Zeros among the values of a matrix: the smallest of all, or of every four along the inputs the smaller two."""

from typing import Literal

import torch
from torch import Tensor

from megatrain.base.errors import ConfigError
from megatrain.huggingface.compression import STRUCTURED

_FOUR, _KEPT = 4, 2  # what the sparse tensor cores of NVIDIA's GPUs take


def pruned(name: str, matrix: Tensor, how: float | Literal["2:4"]) -> Tensor:
    """A copy of a matrix [out, in] with zeros.

    Args:
        name: of the matrix, for messages.
        how: the share of all its values, the smallest in magnitude; or "2:4".

    Raises:
        ConfigError: its inputs are no multiple of four.
    """
    if how != STRUCTURED:
        zeros = round(float(how) * matrix.numel())
        smallest = matrix.abs().flatten().topk(zeros, largest=False, sorted=False).indices
        return matrix.flatten().index_fill(0, smallest, 0.0).view_as(matrix)
    if matrix.shape[1] % _FOUR:
        raise ConfigError(
            f"--prune {STRUCTURED}: {name}: has {matrix.shape[1]} inputs, and they must be a multiple of {_FOUR}. "
            "Take magnitude:0.5"
        )
    fours = matrix.reshape(-1, _FOUR)
    kept = fours.abs().topk(_KEPT, dim=1, sorted=False).indices
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, kept, True)
    return torch.where(mask, fours, 0.0).view_as(matrix)
