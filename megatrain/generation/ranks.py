"""What generation asks of the ranks of a layout: the logits of the whole vocabulary, one token for all who hold parts
of one model, and, where a forward pass needs every rank, whether any of them goes on."""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.parallel.mesh import Mesh


class Ranks(Protocol):
    """
    Attributes:
        positions_multiple: that a forward pass takes positions in.
    """

    positions_multiple: int

    def whole(self, logits_BV: Tensor) -> Tensor:
        """Logits of the whole vocabulary, of those of the part that this rank's head has."""
        ...

    def same(self, tokens_B: Tensor) -> Tensor:
        """One rank's tokens, on all ranks that generate the same texts."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it holds on any of the ranks that a forward pass needs."""
        ...


class Alone:
    """One process that has the whole model."""

    positions_multiple = 1

    def whole(self, logits_BV: Tensor) -> Tensor:
        return logits_BV

    def same(self, tokens_B: Tensor) -> Tensor:
        return tokens_B

    def any(self, flag: bool) -> bool:
        return flag


class MeshRanks:
    """The ranks of a run.

    Args:
        forward_is_collective: as under ZeRO-3, which gathers a block's weights from all ranks that have a part of them.
        sequence_parallel: positions are shared out over the tensor-parallel ranks.
        device: that collectives are on.
    """

    def __init__(
        self, mesh: Mesh, *, forward_is_collective: bool, sequence_parallel: bool, device: torch.device
    ) -> None:
        self._mesh = mesh
        self._collective = forward_is_collective and mesh.replicas > 1
        self._device = device
        self.positions_multiple = mesh.tensor_parallel if sequence_parallel else 1

    def whole(self, logits_BV: Tensor) -> Tensor:
        size = self._mesh.tensor_parallel
        if size == 1:
            return logits_BV
        parts = [torch.empty_like(logits_BV) for _ in range(size)]
        dist.all_gather(parts, logits_BV.contiguous(), group=self._mesh.tensor_group)
        return torch.cat(parts, dim=-1)

    def same(self, tokens_B: Tensor) -> Tensor:
        if self._mesh.tensor_parallel == 1:
            return tokens_B
        tokens_B = tokens_B.to(self._device)
        dist.broadcast(tokens_B, group=self._mesh.tensor_group, group_src=0)
        return tokens_B.cpu()

    def any(self, flag: bool) -> bool:
        if not self._collective:
            return flag
        found = torch.tensor(int(flag), device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._mesh.dp_cp_group)
        return bool(found)
