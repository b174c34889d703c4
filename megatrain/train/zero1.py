"""ZeRO-1 in bf16: gradients are summed in fp32 and reduced to their owners while the backward pass still runs.

DeepSpeed's own optimizer adds up gradients after each backward pass (26 bytes per parameter and micro-batch), averages
all of them in bf16 on all ranks, then takes the norm of, scales and clips whole gradients on every rank. Here

    backward    the hook of each parameter adds its gradient to the fp32 sums (10 bytes; 6 in the first micro-batch of a
                step, which overwrites the last step's sums) and releases it
    its last    once all gradients of a bucket are there, their sums are reduce-scattered in fp32, in place, each rank
                keeping the part whose weights it updates; over NCCL on a stream of its own, beside the backward pass
    step        norm, clipping and update of this rank's part, without the host; then the weights are gathered in bf16

A bucket is a parameter group of the optimizer, as `optimizer.build_optimizer` makes them.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn

from megatrain.parallel.tensor_parallel import shard_of


class Zero1Optimizer(BF16_Optimizer):
    """Takes the place of DeepSpeed's. The norm of the last gradients, before clipping, is `_global_grad_norm`: fp32 [],
    on the device, the same on every rank, and not finite where any gradient is not."""

    def _setup_for_real_optimizer(self) -> None:
        self.immediate_grad_update = True  # hang `accumulate_hp_grads_and_remove_lp` on every parameter
        self.is_gradient_accumulation_boundary = True
        super()._setup_for_real_optimizer()
        self._counted = [list(self._counted_ranges(group)) for group in range(len(self.bf16_groups))]
        self._reductions: dict[int, dist.Work | None] = {}  # by bucket, of this step
        self._missing = [len(group) for group in self.bf16_groups]  # gradients of the last micro-batch

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """DeepSpeed's engine tells, before each backward pass, whether it is the last of a step."""
        self.is_gradient_accumulation_boundary = is_boundary

    @torch.no_grad()
    def accumulate_hp_grads_and_remove_lp(self, parameter: nn.Parameter, group: int, index: int) -> None:
        """The hook of a parameter whose gradient of this micro-batch is complete."""
        assert parameter.grad is not None
        total, gradient = self.fp32_groups_gradients[group][index], parameter.grad.reshape(-1)
        if self.fp32_groups_has_gradients[group][index]:
            total.add_(gradient)
        else:
            total.copy_(gradient)
        self.fp32_groups_has_gradients[group][index] = True
        parameter.grad = None
        if self.is_gradient_accumulation_boundary:
            self._missing[group] -= 1
            if self._missing[group] == 0:
                self._reduce(group)

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Called after the last backward pass of a step: what its hooks have not sent, as they were not all called."""
        for group in range(len(self.bf16_groups)):
            if group not in self._reductions:
                self._reduce(group)

    def _reduce(self, group: int) -> None:
        for has_gradient, total in zip(
            self.fp32_groups_has_gradients[group], self.fp32_groups_gradients[group], strict=True
        ):
            if not has_gradient:
                total.zero_()
        self._reductions[group] = None
        if self.partition_count[group] > 1:
            self._reductions[group] = dist.reduce_scatter_tensor(
                self.fp32_groups_gradient_flat_partition[group],
                self.fp32_groups_gradients_flat[group],
                group=self.real_dp_process_group[group],
                async_op=True,
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for reduction in self._reductions.values():
            if reduction is not None:
                reduction.wait()  # on a GPU its stream waits, not the host
        norm = self._norm()
        self._global_grad_norm = norm
        replicas = self.partition_count[0]
        factor = torch.full_like(norm, 1.0 / replicas)
        if self.clip_grad > 0:
            factor *= torch.clamp(self.clip_grad / (norm + 1e-6), max=1.0)
        for master, gradient in zip(
            self.fp32_groups_flat_partition, self.fp32_groups_gradient_flat_partition, strict=True
        ):
            gradient.mul_(factor)
            master.grad = gradient
        self.optimizer.step()  # leaves all as it is where the norm is not finite: see `Engine.step`
        self.update_lp_params()
        self.clear_hp_grads()

    def _norm(self) -> Tensor:
        """Of the mean gradient over all replicas, in which what tensor-parallel ranks hold alike counts once."""
        parts = [
            torch.linalg.vector_norm(gradient[first:last])
            for gradient, ranges in zip(self.fp32_groups_gradient_flat_partition, self._counted, strict=True)
            for first, last in ranges
        ]
        device = self.fp32_groups_gradients_flat[0].device
        square = torch.stack(parts).square().sum() if parts else torch.zeros((), device=device)
        dist.all_reduce(square)  # every rank of the world has a part of its own of the gradient
        return square.sqrt() / self.partition_count[0]

    def _counted_ranges(self, group: int) -> Iterator[tuple[int, int]]:
        """Of this rank's part of a bucket, from where to where it counts in the norm; no two of them meet."""
        size = self.fp32_groups_gradient_flat_partition[group].numel()
        begin = size * dist.get_rank(self.real_dp_process_group[group])
        alone = self.mpu is None or self.mpu.get_model_parallel_rank() == 0
        open_from, at = None, 0
        for parameter in self.bf16_groups[group]:
            counts = alone or shard_of(parameter) is not None
            if counts and open_from is None:
                open_from = at
            if not counts and open_from is not None:
                yield from _within(open_from - begin, at - begin, size)
                open_from = None
            at += parameter.numel()
        if open_from is not None:
            yield from _within(open_from - begin, at - begin, size)

    @torch.no_grad()
    def update_lp_params(self) -> None:
        """Round this rank's masters to bf16, and gather everybody's: the next bucket is rounded while one travels."""
        gathers = []
        for master, whole, group, size in zip(
            self.fp32_groups_flat_partition,
            self.bf16_groups_flat,
            self.real_dp_process_group,
            self.partition_count,
            strict=True,
        ):
            own = whole.view(size, -1)[dist.get_rank(group)]
            own.copy_(master)
            if size > 1:
                gathers.append(dist.all_gather_into_tensor(whole, own, group=group, async_op=True))
        for gather in gathers:
            gather.wait()

    def clear_hp_grads(self) -> None:
        """The next step's first gradients overwrite the sums."""
        self.fp32_groups_has_gradients = [[False] * len(group) for group in self.bf16_groups]
        self._reductions = {}
        self._missing = [len(group) for group in self.bf16_groups]


def _within(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    first, last = max(first, 0), min(last, size)
    if first < last:
        yield first, last
