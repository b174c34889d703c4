"""What a task's batch is: a frozen dataclass of tensors whose fields say how ranks share them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

SPLIT_SEQUENCE: Mapping[str, Any] = {"split": "sequence"}  # [B, S, …]: each context-parallel rank sees a part of S
ON_HOST: Mapping[str, Any] = {"on_host": True}  # stays on the CPU, in memory that is not page-locked


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One micro-batch of one data-parallel rank; a loader makes it on the CPU.

    Subclasses add fields, each a tensor or None. Without metadata a field is given whole to every rank of a sequence;
    `dataclasses.field(metadata=SPLIT_SEQUENCE)` and `ON_HOST` say otherwise.
    """

    def to(self, device: torch.device) -> Self:
        """The batch on another device; a copy from pinned memory does not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), unless="on_host")

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from where a GPU copies while the CPU goes on. Needs CUDA."""
        return self._each(lambda tensor: tensor.pin_memory(), unless="on_host")

    def split_sequence(self, part: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `part` of each field that context-parallel ranks share out."""
        return self._each(part, where="split")

    def _each(self, change: Callable[[Tensor], Tensor], *, where: str | None = None, unless: str | None = None) -> Self:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            chosen = (where is None or where in field.metadata) and unless not in field.metadata
            if chosen and value is not None:
                changed[field.name] = change(value)
        return replace(self, **changed)
