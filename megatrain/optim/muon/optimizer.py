"""Muon as a torch optimizer, with AdamW for what is not a hidden matrix."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from megatrain.optim.muon.newton_schulz import orthogonalize

_ADAMW_RMS = 0.2  # the root mean square of AdamW's updates, without the rate (arXiv 2502.16982, section 2.2)


class Exchange(Protocol):
    """`parallel.matrix_exchange.MatrixExchange`: matrices as wholes, where ranks hold pieces of them."""

    def apply(
        self,
        units: Sequence[Tensor],
        values: Sequence[Tensor],
        function: Callable[[Tensor], Tensor],
        *,
        scale: Callable[[Sequence[int]], float],
        dtype: torch.dtype,
    ) -> None: ...


class Muon(torch.optim.Optimizer):
    """W an [out, in] matrix, M its momentum, G its gradient, μ the momentum's share that is kept:

        M ← μ·M + (1−μ)·G;   U = μ·M + (1−μ)·G, or M without `nesterov`
        W ← W − lr·(0.2·√max(out, in)·orthogonal(U) + decay·W)

    in groups with `hidden_matrix`; fused AdamW in the others. With 0.2·√max(out, in) an update has the root mean square
    of AdamW's, whose rate and decay it can take (arXiv 2502.16982, equation 4); `torch.optim.Muon` names it
    "match_rms_adamw".

    At a rate of zero no matrix is orthogonalised: such a step makes the state, or moves it, and nothing else.

    Where `found_inf` is set, fp32 [] on the parameters' device, a step leaves weights and state as they are while it is
    1, without the host's knowing: as torch's fused optimizers do.

    Attributes:
        exchange: where parameters are pieces of matrices, or flat; None: they are the matrices.
    """

    found_inf: Tensor | None = None
    exchange: Exchange | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "betas": betas}
        super().__init__(params, defaults | {"eps": eps, "weight_decay": weight_decay, "hidden_matrix": False})
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_matrices([group for group in self.param_groups if group["hidden_matrix"]])
        for group in self.param_groups:
            if not group["hidden_matrix"]:
                self._adamw(group)
        return loss

    def _update_matrices(self, groups: list[dict[str, Any]]) -> None:
        """All of a step's at once: ranks that hold pieces of them send those in few messages."""
        of_group = [(p, group) for group in groups for p in group["params"]]
        if self.exchange is None:
            of_group = [(p, group) for p, group in of_group if p.grad is not None]
        for parameter, group in of_group:
            self._move_momentum(parameter, group)
        if not any(group["lr"] for _, group in of_group):
            return
        self._orthogonalize([parameter for parameter, _ in of_group])
        for parameter, group in of_group:
            rate = group["lr"] if self.found_inf is None else group["lr"] * (1.0 - self.found_inf)
            parameter.mul_(1.0 - rate * group["weight_decay"])
            parameter.sub_(parameter.grad.mul_(rate))

    def _move_momentum(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """The gradient takes part in the momentum, and becomes what is orthogonalised: no other copy is made."""
        if parameter.grad is None:  # other ranks count on its pieces
            parameter.grad = torch.zeros_like(parameter)
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        momentum: Tensor = state["momentum_buffer"]
        moved = 1.0 - group["momentum"]
        if self.found_inf is not None:
            gradient.masked_fill_(self.found_inf != 0, 0.0)  # a product with 0 would leave NaN where it is
            moved = moved * (1.0 - self.found_inf)
        momentum.lerp_(gradient, moved)
        if group["nesterov"]:
            gradient.lerp_(momentum, group["momentum"])
        else:
            gradient.copy_(momentum)

    def _orthogonalize(self, parameters: list[Tensor]) -> None:
        """The gradients, in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        function = partial(orthogonalize, steps=self.defaults["ns_steps"])
        dtype = torch.float32 if gradients[0].device.type == "cpu" else torch.bfloat16
        if self.exchange is not None:
            self.exchange.apply(parameters, gradients, function, scale=_scale, dtype=dtype)
            return
        for gradient in gradients:
            gradient.copy_(function(gradient.to(dtype))).mul_(_scale(gradient.shape))

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _scale(shape: Sequence[int]) -> float:
    return _ADAMW_RMS * math.sqrt(max(shape))
