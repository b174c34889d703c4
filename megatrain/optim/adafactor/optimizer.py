"""Adafactor as a torch optimizer, of whole weights or of whatever pieces of them ranks hold."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_SMALLEST_RMS = 1e-3  # of a weight, with scale_parameter (arXiv 1804.04235, section 8)


class Weights(Protocol):
    """`parallel.whole_sums.CallTensors`: whole weights, of which parameters may be pieces."""

    def move_factors(self, gradients: Sequence[Tensor], moved: float | Tensor, eps: float) -> None: ...

    def normalize(self, gradients: Sequence[Tensor]) -> None: ...

    def root_mean_squares(self, values: Sequence[Tensor]) -> Tensor: ...

    def scale(self, values: Sequence[Tensor], factors: Tensor) -> None: ...


class Exchange(Protocol):
    """`parallel.whole_sums.WholeTensors`."""

    def call(self, parameters: Sequence[Tensor]) -> Weights: ...


class Adafactor(torch.optim.Optimizer):
    """G the gradient of a weight W, t the step, β = 1 − t^−decay_rate (arXiv 1804.04235, algorithms 4 and 5):

        matrices [m, n]   R ← β·R + (1−β)·mean over columns of (G² + eps);  C likewise over rows;  V = R·Cᵀ / mean(R)
        others            V ← β·V + (1−β)·(G² + eps)
        U = G / √V;  W ← W − lr·decay·W − α·U / max(1, RMS(U) / clip_threshold)

    α is lr; of `relative_step` the lesser of lr and 1/√t; of `scale_parameter` that times max(0.001, RMS(W)).

    Rows, columns and root mean squares are those of whole weights: sums over pieces, added up by all ranks, twice a
    step. So every rank has R and C of all matrices, and no matrix travels.

    Where `found_inf` is set, fp32 [] on the parameters' device, a step leaves weights and state as they are while it is
    1, without the host's knowing: as torch's fused optimizers do.

    Attributes:
        exchange: knows the weights that parameters are pieces of, and has R and C. Without it, a step makes state only:
            so DeepSpeed can take one of its own at the start.
    """

    found_inf: Tensor | None = None
    exchange: Exchange | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        decay_rate: float = 0.8,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        scale_parameter: bool = False,
        relative_step: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"clip_threshold": clip_threshold, "scale_parameter": scale_parameter, "relative_step": relative_step}
        defaults = {"lr": lr, "decay_rate": decay_rate, "eps": eps, "weight_decay": weight_decay, "factored": None}
        super().__init__(params, defaults | options)
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        of_group = [(p, group) for group in self.param_groups for p in group["params"]]
        for parameter, group in of_group:
            self._make_state(parameter, group)
        if self.exchange is None:
            assert not any(group["lr"] for _, group in of_group), "such a step is of no rate"
            return loss
        for parameter, _ in of_group:
            if parameter.grad is None:  # other ranks count on its pieces
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
            if self.found_inf is not None:
                parameter.grad.masked_fill_(self.found_inf != 0, 0.0)  # a product with 0 would leave NaN where it is
        if of_group:
            self._update(of_group, self.exchange)
        return loss

    def _make_state(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            if not _is_factored(parameter, group):
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def _update(self, of_group: Sequence[tuple[Tensor, dict[str, Any]]], exchange: Exchange) -> None:
        parameters, groups = [p for p, _ in of_group], [group for _, group in of_group]
        options = self.defaults
        kept = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for parameter in parameters:
            self.state[parameter]["step"] += kept
        step = self.state[parameters[0]]["step"].clamp(min=1.0)  # 0 where no update was kept yet
        moved = step ** -options["decay_rate"] * kept
        gradients = [p.grad.view(-1) for p in parameters if p.grad is not None]
        tensors = exchange.call(parameters)
        tensors.move_factors(gradients, moved, options["eps"])
        rms = tensors.root_mean_squares([p.view(-1) for p in parameters]) if options["scale_parameter"] else None
        for unit, (gradient, group) in enumerate(zip(gradients, groups, strict=True)):
            if not _is_factored(parameters[unit], group):
                second = self.state[parameters[unit]]["exp_avg_sq"].view(-1)
                second.lerp_(gradient.square().add_(options["eps"]), moved)
                # zero where no update was kept yet
                gradient.mul_(second.rsqrt().nan_to_num_(posinf=0.0))
        tensors.normalize(gradients)
        factors = 1.0 / (tensors.root_mean_squares(gradients) / options["clip_threshold"]).clamp_(min=1.0)
        if rms is not None:
            factors *= rms.clamp_(min=_SMALLEST_RMS)
        tensors.scale(gradients, factors)
        for parameter, group in of_group:
            rate = step.rsqrt().clamp(max=group["lr"]) if options["relative_step"] else group["lr"]
            assert parameter.grad is not None
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * kept)
            parameter.sub_(parameter.grad.mul_(rate * kept))


def _is_factored(parameter: Tensor, group: dict[str, Any]) -> bool:
    """By what the group says of its weights, of which flat pieces have no shape."""
    return bool(parameter.ndim == 2 if group["factored"] is None else group["factored"])
