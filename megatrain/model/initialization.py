"""Initial weights, each a function of (seed, name) alone: the same for every layout, one tensor in memory at a time."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatrain.config import ModelSection

ROW_OUTPUTS = ("attention.output.weight", "mlp.down.weight")  # they write into the residual stream


def initial_weight(name: str, shape: torch.Size, config: ModelSection, seed: int) -> Tensor:
    """The whole tensor, fp32 on the CPU.

    Matrices are normal with standard deviation initializer_range; those that write into the residual stream are
    divided by √(2L), so that its variance does not grow with depth (GPT-2, section 2.3). Norm weights are one.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    deviation = config.initializer_range
    if name.endswith(ROW_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_hidden_layers)
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


def materialize(
    model: nn.Module,
    initial: Callable[[str, nn.Parameter], Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replace the parameters of a model built on the meta device by real ones. Tied parameters stay tied.

    Args:
        initial: (name, meta parameter) -> its initial value, of the parameter's shape.
    """
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, meta in list(module._parameters.items()):
            if meta is None:
                continue
            if id(meta) not in made:
                full_name = f"{prefix}.{name}" if prefix else name
                real = nn.Parameter(initial(full_name, meta).to(device, dtype), requires_grad=meta.requires_grad)
                real.__dict__.update(meta.__dict__)
                made[id(meta)] = real
            module._parameters[name] = made[id(meta)]
