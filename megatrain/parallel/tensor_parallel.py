"""Tensor parallelism, applied from outside to a model that knows nothing of it (arXiv 1909.08053).

The parameter table says which dimension of a weight is split, the family at which module's boundary activations enter
and leave a parallel region: model/architecture.py. Every other parameter is replicated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.family import FAMILIES, Region
from megatrain.model.layers import SumOverInputs
from megatrain.parallel import collectives
from megatrain.parallel.context_parallel import part_of_sequence
from megatrain.parallel.vocab_parallel import make_embedding_vocab_parallel, make_head_vocab_parallel


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a whole tensor a parameter is. Stands as `parameter.shard` on each parameter that is split."""

    dim: int
    index: int
    count: int

    def of(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.count, self.dim)[self.index]


def apply_tensor_parallel(
    model: nn.Module, section: ModelSection, group: dist.ProcessGroup, *, sequence_parallel: bool
) -> None:
    """Slice the weights of a whole model in place, and attach the collectives to module boundaries as hooks.

    Marks every split parameter for DeepSpeed, which otherwise counts it once in the gradient norm.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if size == 1:
        return
    split: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one parameter, before and after
    for name, whole in model.named_parameters():
        if (dim := row_of(section, name).split) is not None:
            split[whole] = _split(whole, Shard(dim, rank, size))
    regions = FAMILIES.get(section.family).regions
    for name, module in model.named_modules():
        for leaf, whole in list(module._parameters.items()):
            if whole is not None and whole in split:
                setattr(module, leaf, split[whole])
            elif leaf == "bias" and whole is not None and _is_row_parallel(module):
                _add_bias_after_reduction(model, name, regions)
        if isinstance(module, SumOverInputs) and _is_row_parallel(model.get_submodule(name.rpartition(".")[0])):
            module.register_forward_hook(lambda _, inputs, output: collectives.all_reduce(output, group))
        region = next((region for pattern, region in regions.items() if re.fullmatch(pattern, name)), None)
        if region is not None:
            _mark_region(module, region, group, sequence_parallel)
    make_embedding_vocab_parallel(model.get_submodule("embedding"), rank)
    make_head_vocab_parallel(model.get_submodule("head"), rank, group)


def sum_replicated_gradients(
    model: nn.Module, section: ModelSection, group: dist.ProcessGroup, *, sequence_parallel: bool
) -> None:
    """Replicated weights inside a region get partial gradients: the table says which. Under sequence parallelism all
    replicated ones do, for each rank sees some of the positions."""
    if dist.get_world_size(group) == 1:
        return
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or shard_of(parameter) is not None:
            continue
        if sequence_parallel or row_of(section, name).partial_gradient:
            parameter.register_hook(lambda gradient: collectives.all_reduce(gradient, group))


def shard_of(parameter: Tensor) -> Shard | None:
    """Which part of a whole tensor a parameter is; None when it is the whole."""
    return getattr(parameter, "shard", None)


def _split(whole: nn.Parameter, shard: Shard) -> nn.Parameter:
    part = nn.Parameter(shard.of(whole.detach()).clone(), requires_grad=whole.requires_grad)
    part.shard = shard  # type: ignore[attr-defined]
    part.tensor_model_parallel = part.model_parallel = True  # type: ignore[attr-defined]
    return part


def _is_row_parallel(module: nn.Module) -> bool:
    shard = shard_of(module.weight) if isinstance(module, nn.Linear) else None
    return shard is not None and shard.dim == 1


def _add_bias_after_reduction(model: nn.Module, name: str, regions: Mapping[str, Region]) -> None:
    """Every rank holds the whole bias of a row-parallel layer, whose product is a part of a sum: it is added once, to
    what leaves the region."""
    parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
    leaving = (
        parent
        for parent in (name, *parents)
        if any(region.leave and re.fullmatch(pattern, parent) for pattern, region in regions.items())
    )
    around = next(leaving, None)
    if around is None:
        raise ValueError(f"{name}: a row-parallel layer outside of any tensor-parallel region")
    linear = model.get_submodule(name)
    linear.forward = partial(type(linear).forward, _WithoutBias(linear))
    model.get_submodule(around).register_forward_hook(lambda _, inputs, output: output + linear.bias)


class _WithoutBias:
    """What a linear layer of whatever class finds in place of itself, so that it multiplies and does not add."""

    bias = None

    def __init__(self, linear: nn.Module) -> None:
        self._linear = linear

    def __getattr__(self, name: str) -> Any:
        return getattr(self._linear, name)


def _mark_region(module: nn.Module, region: Region, group: dist.ProcessGroup, sequence: bool) -> None:
    enter = collectives.gather_sequence if sequence else collectives.copy_to_region
    leave = collectives.scatter_sequence if sequence else collectives.reduce_from_region
    if region.enter:
        module.register_forward_pre_hook(lambda _, inputs: (enter(inputs[0], group), *inputs[1:]))
    if region.leave:
        module.register_forward_hook(lambda _, inputs, output: leave(output, group))
    if region.whole and sequence:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        module.register_forward_hook(lambda _, inputs, output: part_of_sequence(output, rank, size))
