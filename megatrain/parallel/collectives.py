"""Collectives that autograd differentiates, as conjugate pairs over one process group.

    into a parallel region      out of it                       layout of activations outside
    copy     (bwd all-reduce)   reduce   (fwd all-reduce)       whole on every rank
    gather   (bwd scatter)      scatter  (fwd reduce-scatter)   split along the sequence (dimension 1)

    all_to_all                  all_to_all                      split along the sequence outside, along the heads inside

The second pair is sequence parallelism (arXiv 2205.05198, section 4.2.2): the same bytes, but the norms and residuals
between the regions are neither computed nor kept by more than one rank. `all_to_all` is its own conjugate: context
parallelism in the manner of DeepSpeed-Ulysses (arXiv 2309.14509). Functional collectives keep the
graph whole under torch.compile.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

SEQUENCE = 1  # of [B, S, D]


def copy_to_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = _Copy.apply(x, group)
    return out


def reduce_from_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = _Reduce.apply(x, group)
    return out


def gather_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = _Gather.apply(x, group)
    return out


def scatter_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = _Scatter.apply(x, group)
    return out


def all_to_all(x: Tensor, group: dist.ProcessGroup, *, split: int, join: int) -> Tensor:
    """Split along one dimension and joined along another: all-to-all. `group`'s size divides dimension `split`."""
    out: Tensor = _Swap.apply(x, group, split, join)
    return out


def all_reduce(x: Tensor, group: dist.ProcessGroup, op: str = "sum") -> Tensor:
    """Not differentiable."""
    return _wait(functional.all_reduce(x.contiguous(), op, group))


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _wait(functional.all_gather_tensor(x.contiguous(), SEQUENCE, group))


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _wait(functional.reduce_scatter_tensor(x.contiguous(), "sum", SEQUENCE, group))


def _all_to_all(x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
    parts = torch.stack(x.chunk(dist.get_world_size(group), split))  # one for each rank
    return torch.cat(_wait(functional.all_to_all_single(parts, None, None, group)).unbind(), join)


def _wait(x: Tensor) -> Tensor:
    """Functional collectives are asynchronous until waited for; inside a compiled graph the compiler waits."""
    return functional.wait_tensor(x) if not torch.compiler.is_compiling() else x


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grads[0], ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grads[0], ctx.group), None


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _all_to_all(x, group, split, join)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.group, ctx.join, ctx.split), None, None, None
