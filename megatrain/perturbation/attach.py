"""Dropout and noise, as hooks on a model that knows nothing of them."""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.kernels.keyed_random import dropout, uniform
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES
from megatrain.perturbation.noise import Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseAmounts:
    """How much a model is disturbed.

    Attributes:
        dropout: probability, of what each layer adds to the residual stream.
        embedding_dropout: of what enters the first block.
        neftune: alpha of the noise on embedded tokens; 0: there is none.
    """

    dropout: float = 0.0
    embedding_dropout: float = 0.0
    neftune: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.dropout or self.embedding_dropout or self.neftune)


def attach_noise(
    model: nn.Module, section: ModelSection, noise: Noise, amounts: NoiseAmounts, device: torch.device | str
) -> None:
    """Hook it to the model, in place: behind the collectives of tensor parallelism, inside what is recomputed and
    compiled. The layers share one hook, and with it one compiled graph."""
    patterns = FAMILIES.get(section.family).residual
    on_layers = _dropout_hook(noise, amounts.dropout)
    for name, module in model.named_modules():
        if amounts.dropout and any(re.fullmatch(pattern, name) for pattern in patterns):
            module.noise_site = _site(name, device)
            module.register_forward_hook(on_layers)
    embedding, blocks = model.get_submodule("embedding"), model.get_submodule("blocks")
    if amounts.neftune:
        embedding.register_forward_hook(_neftune_hook(noise, amounts.neftune, _site("embedding", device)))
    if amounts.embedding_dropout:
        into_blocks = _entering_hook(noise, amounts.embedding_dropout, _site("blocks", device))
        next(blocks.children()).register_forward_pre_hook(into_blocks)


def _site(name: str, device: torch.device | str) -> Tensor:
    """The key of a place in the model. A tensor: a compiler would make a graph for each value of a number."""
    return torch.tensor(zlib.crc32(name.encode()), device=device)


def _dropout_hook(noise: Noise, probability: float) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if noise.keys_BS is None:
            return output
        return dropout(output, noise.keys_BS, module.noise_site, probability)  # type: ignore[arg-type]

    return hook


def _entering_hook(noise: Noise, probability: float, site: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if noise.keys_BS is None:
            return inputs
        return dropout(inputs[0], noise.keys_BS, site, probability), *inputs[1:]

    return hook


def _neftune_hook(noise: Noise, alpha: float, site: Tensor) -> Callable[..., Any]:
    """Uniform noise of at most alpha / √(L·D), L tokens in the example (arXiv 2310.05914, algorithm 1)."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if noise.keys_BS is None or noise.lengths_BS is None:
            return output
        width = output.shape[-1]
        bound_BS = alpha / (noise.lengths_BS * width).float().sqrt()
        return output + (uniform(noise.keys_BS, site, width) * bound_BS[..., None]).to(output.dtype)

    return hook
