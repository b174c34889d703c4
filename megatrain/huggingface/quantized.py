"""Weight-only quantization in torchao's format, as `transformers` reads it: a tensor at a time, without a GPU.

The values of a matrix are stored in 8 or 4 bits, with a scale for each output, or each group of inputs of one. They are
multiplied in the precision of the activations: a kernel takes values and scales and makes them whole as it goes.
"""

import json
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError, PreflightError
from megatrain.huggingface.compression import Quantize

_GROUPS = (128, 64, 32)  # inputs of an int4 scale, that torchao has kernels for
_STEPS = 15  # between the 16 values of 4 bits
_MIDDLE = 8  # a stored 4-bit number is from -8 to 7


class Quantizer:
    """Of one model.

    Args:
        kind: of the stored values.
        shapes: of all its tensors, by their names in the class that loads them.
        names: of those that are quantized; matrices [out, in].
        empty: the model of `transformers`, on the meta device.
        dtype: of the other weights, and of the activations.

    Raises:
        PreflightError: torchao is not installed.
        ConfigError: a matrix cannot be quantized so, or `transformers` has it in another module than a linear layer.
    """

    def __init__(
        self,
        kind: Quantize,
        shapes: Mapping[str, tuple[int, ...]],
        names: Collection[str],
        empty: nn.Module,
        dtype: torch.dtype,
    ) -> None:
        if find_spec("torchao") is None:
            raise PreflightError("--quantize: needs torchao, which is not installed: pip install 'megatrain[fp8]'")
        self._kind, self._names = kind, set(names)
        modules = {name: module for name, module in empty.named_modules() if isinstance(module, nn.Linear)}
        for name in names:
            if name.removesuffix(".weight") not in modules:
                raise ConfigError(
                    f"--quantize {kind}: {name}: is in no linear layer of transformers' model, and torchao quantizes "
                    "no others: a model of this family is exported as it is, or pruned"
                )
        self._kept = sorted(name for name in modules if f"{name}.weight" not in self._names)
        self._group = _group({name: shapes[name] for name in names}, dtype) if kind == "int4" else 0
        self._metadata = self._describe(shapes, dtype)

    def flattened(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a file of weights holds for some tensors."""
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        made = {name: self._quantized(tensor) if name in self._names else tensor for name, tensor in tensors.items()}
        flat: dict[str, Tensor] = flatten_tensor_state_dict(made)[0]
        return flat

    @property
    def metadata(self) -> dict[str, str]:
        """Of every file: it describes all tensors, since `transformers` puts those of several files together."""
        return self._metadata

    @property
    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        kinds = {
            "int8": Int8WeightOnlyConfig,
            "fp8": Float8WeightOnlyConfig,
            "int4": lambda: Int4WeightOnlyConfig(group_size=self._group),
        }
        found: dict[str, Any] = TorchAoConfig(kinds[self._kind](), modules_to_not_convert=self._kept).to_dict()
        return found

    def _describe(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, str]:
        """A tensor's description depends on its shape alone."""
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        made: dict[tuple[tuple[int, ...], bool], str] = {}
        found = {}
        for name, shape in shapes.items():
            key = (shape, name in self._names)
            if key not in made:
                zeros = torch.zeros(shape, dtype=dtype) if key[1] else torch.empty(0)
                example = self._quantized(zeros) if key[1] else zeros
                made[key] = flatten_tensor_state_dict({"a.weight": example})[1]["a.weight"]
            found[name] = made[key]
        return found | {"tensor_names": json.dumps(list(shapes))}

    def _quantized(self, matrix: Tensor) -> Tensor:
        from torchao.quantization import Float8Tensor, Int8Tensor, PerRow

        if self._kind == "int8":
            return Int8Tensor.from_hp(matrix, granularity=PerRow())
        if self._kind == "fp8":
            return Float8Tensor.from_hp(matrix, granularity=PerRow())
        return int4_tensor(matrix, self._group)


def int4_tensor(matrix: Tensor, group: int) -> Tensor:
    """torchao's Int4Tensor of a matrix [out, in], which its own constructor makes on a GPU only.

    A group of inputs of one output has the values q · scale + zero, q from -8 for the least to 7 for the greatest. Two
    neighbouring q lie in a byte, the even one in its lower half. Scales and zeros are [in / group, out].
    """
    from torchao.quantization import Int4Tensor

    values = matrix.float().view(matrix.shape[0], -1, group)
    least, most = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = (most - least).clamp(min=1e-6) / _STEPS
    numbers = ((values - least) / scale).round().clamp(0, _STEPS).to(torch.int8) - _MIDDLE
    numbers = numbers.view_as(matrix)
    packed = (numbers[:, 0::2] & 0xF) | (numbers[:, 1::2] << 4)
    scales, zeros = (one.squeeze(-1).t().contiguous().to(matrix.dtype) for one in (scale, least + scale * _MIDDLE))
    return Int4Tensor(
        qdata=packed.contiguous(),
        scale=scales,
        zero_point=zeros,
        block_size=[1, group],
        shape=matrix.shape,
        activation_dtype=torch.bfloat16,
    )


def whole(tensor: Tensor) -> Tensor:
    """The values that a product with a quantized matrix takes, fp32 [out, in]."""
    from torchao.quantization import Int4Tensor

    if not isinstance(tensor, Int4Tensor):
        dequantized: Tensor = tensor.dequantize()
        return dequantized.float()
    packed = tensor.qdata
    even, odd = (packed << 4) >> 4, packed >> 4  # of int8, so that the sign is kept
    numbers = torch.stack((even, odd), dim=-1).flatten(1).float()
    group = tensor.block_size[-1]
    scale, zero = (one.float().t().repeat_interleave(group, dim=1) for one in (tensor.scale, tensor.zero_point))
    return numbers * scale + zero


def read_whole(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The quantized tensors among those of a file, as fp32 matrices; the others as they are."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    found, _ = unflatten_tensor_state_dict(dict(tensors), dict(metadata))
    return {name: tensor if type(tensor) is Tensor else whole(tensor) for name, tensor in found.items()}


def _group(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> int:
    if dtype != torch.bfloat16:
        said = str(dtype).removeprefix("torch.")
        raise ConfigError(f"--dtype {said}: with --quantize int4 it must be bfloat16, in which its kernels multiply")
    for group in _GROUPS:
        if all(shape[1] % group == 0 for shape in shapes.values()):
            return group
    name, shape = next((name, shape) for name, shape in shapes.items() if shape[1] % _GROUPS[-1])
    raise ConfigError(
        f"--quantize int4: {name}: has {shape[1]} inputs, and they must be a multiple of {_GROUPS[-1]}. "
        "Take int8 or fp8"
    )
