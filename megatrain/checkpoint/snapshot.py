"""What a checkpoint is made of, on one rank."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from megatrain.checkpoint.state import State


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    Attributes:
        state: the same on every rank; becomes state.json.
        tensors: what this rank saves of them, by global name: `LocalShards`, or whole tensors.
    """

    state: State
    tensors: Mapping[str, Tensor]

    @property
    def step(self) -> int:
        return self.state.step
