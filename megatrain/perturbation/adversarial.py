"""Perturbations of embedded tokens against the model: FGM (arXiv 1605.07725) and PGD (arXiv 1706.06083).

Of each example, with g the gradient of the loss with respect to what the embedding gives, over all its tokens:

    FGM     r = ε·g/‖g‖
    PGD     r ← r + α·g/‖g‖, g anew at each r, then scaled back to ‖r‖ ≤ ε

Loss: that of the example plus that of the example with r. An example's norm is over all ranks that hold parts of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.config.adversarial import AdversarialSection
from megatrain.data.loading.batch import Batch
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.monitor.metric import METRICS, Metric
from megatrain.perturbation.noise import documents_of

METRICS.register(
    "adversarial_loss",
    Metric(
        unit="nats per target: the loss of perturbed examples",
        tag="train/adversarial_loss",
        format="{:.3f}".format,
        console="perturbed {value}",
        over_steps="mean",
        over_ranks="sum",
    ),
)


class Adversary:
    """Hooked behind the embedding. From `begin` to `end` it keeps the gradient of each backward pass there, and adds
    the perturbation in each forward pass.

    Args:
        sequence_parts: into how many parts ranks cut a batch's sequences before the model sees them.
        part: what of [B, S] of whole sequences this rank holds between layers.
        whole_sum: a tensor summed over the ranks that hold the other parts of the same sequences.

    Attributes:
        embedded: of the last forward pass, [B, S, D]: what blocks were given.
    """

    def __init__(
        self,
        section: AdversarialSection,
        *,
        sequence_parts: int = 1,
        part: Callable[[Tensor], Tensor] = lambda whole: whole,
        whole_sum: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> None:
        self.section = section
        self._sequence_parts, self._part, self._whole_sum = sequence_parts, part, whole_sum
        self._examples_BS: Tensor | None = None  # int64, of this rank's part; None outside of training
        self._count = 0  # of examples
        self._perturbation: Tensor | None = None  # fp32 [B, S, D]
        self._gradient: Tensor | None = None
        self.embedded: Tensor | None = None

    def attach(self, model: nn.Module) -> None:
        model.get_submodule("embedding").register_forward_hook(self._embedded)

    def begin(self, batch: TensorBatch) -> None:
        """Before the first forward pass of a micro-batch, on its device and this rank's part of it."""
        assert isinstance(batch, Batch)
        rows, length = batch.input_ids.shape
        length *= self._sequence_parts
        bounds = batch.cu_seqlens
        if bounds is None:
            bounds = torch.arange(rows + 1, device=batch.input_ids.device) * length
        self._examples_BS, self._count = self._part(documents_of(bounds, rows, length)), len(bounds) - 1

    def find_gradient(self, loss: Tensor) -> None:
        """Of the last forward pass, with respect to what blocks were given, and to no weight."""
        assert self.embedded is not None
        torch.autograd.grad(loss, self.embedded)

    def ascend(self) -> None:
        """Perturb along the gradient of the last backward pass."""
        assert self._gradient is not None
        found = self._scaled(self._gradient.float(), lambda norm: self.section.ascent_size / norm)
        if self._perturbation is not None:
            bound = self.section.epsilon
            found = self._scaled(self._perturbation + found, lambda norm: (bound / norm).clamp(max=1.0))
        self._perturbation, self._gradient = found, None

    def end(self) -> None:
        """Behind the last backward pass."""
        self._examples_BS = self._perturbation = self._gradient = self.embedded = None

    def _scaled(self, x_BSD: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """Each example times a factor of its norm; what is zero stays so."""
        assert self._examples_BS is not None
        squares = x_BSD.new_zeros(self._count)
        squares.index_add_(0, self._examples_BS.flatten(), x_BSD.square().sum(-1).flatten())
        norms = self._whole_sum(squares).sqrt()
        factors = torch.where(norms == 0, 0.0, factor(norms))
        return x_BSD * factors[self._examples_BS][..., None]

    def _embedded(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._examples_BS is None:
            return output
        if not output.requires_grad:  # where the embedding is frozen
            output = output.detach().requires_grad_()
        if self._perturbation is not None:
            output = output + self._perturbation.to(output.dtype)
        output.register_hook(self._keep)
        self.embedded = output
        return output

    def _keep(self, gradient: Tensor) -> None:
        self._gradient = gradient
