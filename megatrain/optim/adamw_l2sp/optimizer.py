"""AdamW that decays toward a start, as a torch optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdamWL2SP(torch.optim.AdamW):
    """w ← w − lr·decay·(w − start) − lr·(Adam's step). `start` is a state tensor, zero until someone writes it.

    Where `found_inf` is set, fp32 [], a step leaves all as it is while it is 1, as torch's fused optimizers do.
    """

    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss: Any = super().step(closure)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "start" not in state:
                    state["start"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                # AdamW has drawn it to zero by lr·decay·w
                kept = parameter.new_ones(()) if found_inf is None else 1.0 - found_inf
                parameter.addcmul_(state["start"], kept, value=group["lr"] * group["weight_decay"])
        return loss
