"""Parameters -> optimizer."""

import torch
from torch import nn

from megatrain.config import OptimizerSection


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    """AdamW, fused, in two groups: matrices decay, vectors (norm weights) do not.

    Its rate is zero until the loop sets one before each step: DeepSpeed takes a step of its own to make the state, and
    at any other rate that step would already decay the weights.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def _is_matrix(parameter: nn.Parameter) -> bool:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # of the whole, where ZeRO-3 has left a flat part of it
    return len(shape) >= 2
