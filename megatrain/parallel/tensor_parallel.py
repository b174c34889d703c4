"""Tensor parallelism as two tables, applied from outside to a model that knows nothing of it (arXiv 1909.08053).

`WEIGHTS` says which dimension of a weight is split; `REGIONS` at which module's boundary activations enter and leave a
parallel region. Every other parameter is replicated.
"""

import re
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from megatrain.parallel import collectives
from megatrain.parallel.vocab_parallel import make_embedding_vocab_parallel, make_head_vocab_parallel

_T = TypeVar("_T")

COLUMN, ROW, VOCAB = 0, 1, 0  # the dimension of an [out, in] weight that is split

WEIGHTS = {
    r"embedding": VOCAB,
    r"blocks\.\d+\.attention\.(query|key|value)": COLUMN,
    r"blocks\.\d+\.attention\.output": ROW,
    r"blocks\.\d+\.mlp\.(gate|up)": COLUMN,
    r"blocks\.\d+\.mlp\.down": ROW,
    r"head": VOCAB,
}

REGIONS = {  # module: (activations enter, activations leave)
    r"embedding": (False, True),
    r"blocks\.\d+\.attention": (True, True),
    r"blocks\.\d+\.mlp": (True, True),
    r"head": (True, False),  # the loss leaves reduced; see kernels/cross_entropy.py
}


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a whole tensor a parameter is. Stands as `parameter.shard` on each parameter that is split."""

    dim: int
    index: int
    count: int

    def of(self, whole: Tensor) -> Tensor:
        return whole.chunk(self.count, self.dim)[self.index]


def apply_tensor_parallel(model: nn.Module, group: dist.ProcessGroup, *, sequence_parallel: bool) -> None:
    """Slice the weights of a whole model in place, and hang the collectives on module boundaries.

    Marks every split parameter for DeepSpeed, which otherwise counts it once in the gradient norm.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if size == 1:
        return
    split: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one parameter, before and after
    for name, module in model.named_modules():
        if (dim := _look_up(WEIGHTS, name)) is not None:
            whole = module.weight
            assert isinstance(whole, nn.Parameter)
            if whole not in split:
                split[whole] = _split(whole, Shard(dim, rank, size))
            module.weight = split[whole]
        if (region := _look_up(REGIONS, name)) is not None:
            enters, leaves = region
            _mark_region(module, enters, leaves, group, sequence_parallel)
    make_embedding_vocab_parallel(model.get_submodule("embedding"), rank)
    make_head_vocab_parallel(model.get_submodule("head"), rank, group)


def sum_replicated_gradients(model: nn.Module, group: dist.ProcessGroup) -> None:
    """For sequence parallelism: each rank sees some of the positions, so replicated weights get partial gradients."""
    for parameter in model.parameters():
        if parameter.requires_grad and shard_of(parameter) is None:
            parameter.register_hook(lambda gradient: collectives.all_reduce(gradient, group))


def shard_of(parameter: Tensor) -> Shard | None:
    """Which part of a whole tensor a parameter is; None when it is the whole."""
    return getattr(parameter, "shard", None)


def _look_up(table: dict[str, _T], name: str) -> _T | None:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), None)


def _split(whole: nn.Parameter, shard: Shard) -> nn.Parameter:
    part = nn.Parameter(shard.of(whole.detach()).clone(), requires_grad=whole.requires_grad)
    part.shard = shard  # type: ignore[attr-defined]
    part.tensor_model_parallel = part.model_parallel = True  # type: ignore[attr-defined]
    return part


def _mark_region(module: nn.Module, enters: bool, leaves: bool, group: dist.ProcessGroup, sequence: bool) -> None:
    enter = collectives.gather_sequence if sequence else collectives.copy_to_region
    leave = collectives.scatter_sequence if sequence else collectives.reduce_from_region
    if enters:
        module.register_forward_pre_hook(lambda _, inputs: (enter(inputs[0], group), *inputs[1:]))
    if leaves:
        module.register_forward_hook(lambda _, inputs, output: leave(output, group))
