"""The one place that builds DeepSpeed, and the small face of it that the loop sees."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported

import deepspeed
from deepspeed.utils import logger as deepspeed_logger

from megatrain.checkpoint import fragments
from megatrain.data.batch import Batch
from megatrain.parallel import collectives
from megatrain.parallel.mesh import Mesh
from megatrain.parallel.tensor_parallel import shard_of

deepspeed_logger.setLevel(logging.ERROR)


class Engine:
    """A model under DeepSpeed: gradients in, updates out, and its state as tensors of any layout.

    Args:
        model: this rank's slice, as `parallel.apply.build_parallel_model` makes it.
        ds_config: as `launcher.deepspeed_config` writes it; nothing is added here.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, mesh: Mesh, ds_config: Mapping[str, Any]):
        self.mesh = mesh
        self._accumulation: int = ds_config["gradient_accumulation_steps"]
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=dict(ds_config), mpu=mesh, dist_init_required=False
        )
        self.device: torch.device = self._engine.device
        self._reports_norm = hasattr(self._engine.optimizer, "_global_grad_norm") or ds_config["zero_optimization"]["stage"]
        fragments.create_optimizer_state(self._engine)

    def accumulate(self, batch: Batch, target_tokens: int) -> Tensor:
        """Forward and backward of one micro-batch; returns its summed loss (fp32, detached).

        Args:
            target_tokens: labels in the whole global batch. The gradient is that of the summed loss over it, wherever
                in the global batch the labels are.
        """
        loss = self._forward(batch)
        # DeepSpeed divides by the accumulation steps and averages over data-parallel ranks; we want one global mean
        scale = self._accumulation * self.mesh.data_parallel / target_tokens
        self._engine.backward(loss * scale)
        return loss.detach()

    def step(self, learning_rate: float) -> float:
        """Finish a micro-batch; after the last of a global batch, update the weights.

        Must be called after each `accumulate`. Returns the norm of the whole gradient before clipping, at the last
        micro-batch of a step; 0.0 at the others.
        """
        boundary = self._engine.is_gradient_accumulation_boundary()
        norm = self._plain_gradient_norm() if boundary and not self._reports_norm else 0.0
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if boundary and self._reports_norm:
            norm = float(self._engine.get_global_grad_norm())
        return norm

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Summed loss of one micro-batch (fp32)."""
        self._engine.eval()
        loss = self._forward(batch)
        self._engine.train()
        return loss

    def state(self, *, for_saving: bool = False, weights_only: bool = False) -> dict[str, Tensor]:
        """Weights and optimizer state that this rank owns; writing into them, then `loaded`, changes the engine."""
        return dict(fragments.fragments(self._engine, for_saving=for_saving, weights_only=weights_only))

    def loaded(self, optimizer_step: int) -> None:
        """Call after the tensors of `state` were written."""
        fragments.set_optimizer_step(self._engine, optimizer_step)
        fragments.refresh_model_weights(self._engine)

    def _forward(self, batch: Batch) -> Tensor:
        batch = batch.to(self.device)
        loss: Tensor = self._engine(
            batch.input_ids,
            batch.labels,
            position_ids_BS=batch.position_ids,
            document_ids_BS=batch.document_ids,
        )
        return loss

    def _plain_gradient_norm(self) -> float:
        """fp32 without ZeRO, where DeepSpeed reports none. Replicated parameters count once."""
        squares = torch.zeros(2, device=self.device)  # split over tensor-parallel ranks; replicated
        for p in self._engine.module.parameters():
            if p.grad is not None:
                squares[0 if shard_of(p) else 1] += p.grad.float().pow(2).sum()
        split = collectives.all_reduce(squares[:1], self.mesh.tensor_group)
        return math.sqrt(float(split[0] + squares[1]))


def read_ds_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config
