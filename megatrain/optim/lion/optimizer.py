"""Lion as a torch optimizer: algorithm 2 of arXiv 2302.06675, with decoupled decay."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """m momentum, g gradient:  w ← (1 − lr·decay)·w − lr·sign(β₁·m + (1−β₁)·g);  m ← β₂·m + (1−β₂)·g.

    Where `found_inf` is set, fp32 [] on the parameters' device, a step leaves weights and momentum as they are while it
    is 1, without the host's knowing: as torch's fused optimizers do.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum: Tensor = state["exp_avg"]
        first, second = group["betas"]
        rate, moved = group["lr"], 1.0 - second
        if self.found_inf is not None:
            gradient = gradient.where(self.found_inf == 0, 0.0)  # a product with 0 would leave NaN where it is
            rate, moved = rate * (1.0 - self.found_inf), moved * (1.0 - self.found_inf)
        parameter.mul_(1.0 - rate * group["weight_decay"])
        parameter.sub_(gradient.lerp(momentum, first).sign_().mul_(rate))
        momentum.lerp_(gradient, moved)
