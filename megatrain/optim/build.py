"""Parameters -> groups -> optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from megatrain.base.registry import load_object
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection


def build_optimizer(
    model: nn.Module,
    config: OptimizerSection,
    *,
    decays: Callable[[str], float],
    is_hidden_matrix: Callable[[str], bool] = lambda name: False,
    is_factored: Callable[[str], bool] = lambda name: False,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    bucket_elements: int | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a run, in groups of two kinds: weights that decay, and those that do not; of an optimizer that
    updates hidden matrices as wholes, in groups of their own; and so are weights whose rates differ.

    Its rate is zero until the loop sets one before each step: DeepSpeed takes a step of its own to make the state, and
    at any other rate that step would already decay the weights.

    Args:
        decays: whether a weight of this name does, or what its decay is multiplied by.
        is_hidden_matrix: whether a weight of this name is one; see `ParameterRow`.
        is_factored: whether the optimizer keeps factors of a weight of this name; see `OptimizerSpec`.
        lr_scale: of a weight of this name, by which the schedule's rate is multiplied; and with the rate its decay.
        bucket_elements: of which a kind makes groups of so many elements each, or of a single parameter that has more;
            the group of a model's first parameters, whose gradients are made last, may be smaller. None: one group.
    """
    spec = OPTIMIZERS.get(config.name)
    kinds: dict[tuple[bool, bool, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = is_hidden_matrix(name) if spec.matrices else is_factored(name)
            decay = float(decays(name))
            kinds[is_matrix, decay > 0, lr_scale(name), decay].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": bucket, "weight_decay": config.weight_decay * decay, "lr_scale": scale}
        | ({"hidden_matrix": matrix} if spec.matrices else {})
        | ({"factored": matrix} if spec.factored else {})
        for (matrix, _, scale, decay), parameters in sorted(kinds.items(), key=lambda item: item[0], reverse=True)
        for bucket in _buckets(parameters, bucket_elements)
    ]
    optimizer: torch.optim.Optimizer = load_object(spec.optimizer)(groups, lr=0.0, **spec.arguments(config))
    return optimizer


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
