"""ZeRO-2, and ZeRO-1 in fp32: DeepSpeed's optimizer, with gradients clipped without the host."""

from collections.abc import Sequence

import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


class Zero2Optimizer(DeepSpeedZeroOptimizer):
    """Takes the place of DeepSpeed's, which asks the device once for each parameter group whether the norm is finite.

    A norm that is not needs no clipping: the update is dropped (`Engine.step`).
    """

    def unscale_and_clip_grads(self, grad_groups_flat: Sequence[Tensor], total_norm: Tensor) -> None:
        assert self.loss_scale == 1.0, "no loss is scaled in bf16 and fp32"
        if self.clip_grad > 0:
            factor = torch.clamp(self.clip_grad / (total_norm + 1e-6), max=1.0)
            for gradient in grad_groups_flat:
                gradient.mul_(factor)
