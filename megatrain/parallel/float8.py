"""Linear layers that multiply in fp8, by torchao: forward, gradient of the input and gradient of the weight.

Weights, activations and gradients stay bf16; each product first scales and rounds its two operands: to e4m3, and under
tensorwise scaling gradients to e5m2 (arXiv 2209.05433). The tensor cores add up in fp32. On a CPU, which has none for
fp8, the rounded operands are multiplied in fp32.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from megatrain.base.errors import ConfigError
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.fp8 import multiplies_in_fp8

Scaling = Literal["tensorwise", "rowwise"]


def apply_float8(
    model: nn.Module, section: ModelSection, scaling: Scaling, *, tensor_parallel: int = 1, emulate: bool = False
) -> list[str]:
    """Swap the linear layers of blocks whose sides allow it, before anything is attached to them; names and parameters
    stay. Embedding and head are no linear layers, and stay in bf16.

    Args:
        scaling: a scale per tensor, which is the fastest; or per row and column, which is the more exact.
        tensor_parallel: ranks over which the layers will be sliced.
        emulate: without fp8 instructions.

    Returns:
        The names of the layers.

    Raises:
        ConfigError: torchao is not installed.
    """
    float8 = _torchao()
    chosen = set(float8_layers(model, section, tensor_parallel))
    config = replace(float8.Float8LinearConfig.from_recipe_name(scaling), emulate=emulate)
    float8.convert_to_float8_training(model, config=config, module_filter_fn=lambda module, name: name in chosen)
    return sorted(chosen)


def float8_layers(model: nn.Module, section: ModelSection, tensor_parallel: int = 1) -> Iterator[str]:
    """Linear layers of blocks whose matrices model/fp8.py admits."""
    for name, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear) and name.startswith("blocks.")
        if is_linear and multiplies_in_fp8(row_of(section, f"{name}.weight"), tensor_parallel):
            yield name


def _torchao() -> Any:
    for talkative in ("torchao", "torch.utils._pytree"):  # of kernels that are not used here
        logging.getLogger(talkative).setLevel(logging.ERROR)
    try:
        import torchao.float8
    except ImportError as error:
        raise ConfigError(f"training.precision: fp8: {error}. Install torchao: pip install 'megatrain[fp8]'") from None
    return torchao.float8
