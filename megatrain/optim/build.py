"""Parameters -> optimizer."""

from collections.abc import Iterator

import torch
from torch import nn

from megatrain.config import OptimizerSection


def build_optimizer(
    model: nn.Module, config: OptimizerSection, *, bucket_elements: int | None = None
) -> torch.optim.Optimizer:
    """AdamW, fused, in groups of two kinds: matrices decay, vectors (norm weights) do not.

    Its rate is zero until the loop sets one before each step: DeepSpeed takes a step of its own to make the state, and
    at any other rate that step would already decay the weights.

    Args:
        bucket_elements: of which a kind makes groups of so many elements each, or of a single parameter that has more;
            the group of a model's first parameters, whose gradients are made last, may be smaller. None: one group.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": bucket, "weight_decay": decay}
        for kind, decay in (
            ([p for p in trained if _is_matrix(p)], config.weight_decay),
            ([p for p in trained if not _is_matrix(p)], 0.0),
        )
        for bucket in _buckets(kind, bucket_elements)
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def _buckets(parameters: list[nn.Parameter], elements: int | None) -> Iterator[list[nn.Parameter]]:
    """Neighbours together; those at the end first, in the order in which a backward pass makes gradients."""
    bucket: list[nn.Parameter] = []
    for parameter in reversed(parameters):
        if elements is not None and bucket and sum(p.numel() for p in [*bucket, parameter]) > elements:
            yield bucket[::-1]
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket[::-1]


def _is_matrix(parameter: nn.Parameter) -> bool:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # of the whole, where ZeRO-3 has left a flat part of it
    return len(shape) >= 2
