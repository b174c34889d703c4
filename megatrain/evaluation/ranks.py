"""Who evaluates: one process with the whole model, or ranks that share model and data out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatrain.checkpoint.read import model_of
from megatrain.config import ModelSection
from megatrain.config.resolved import ResolvedParallel
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.generation import ranks as generating
from megatrain.huggingface.merged import MergedWeights
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.context_parallel import part_of_sequence
from megatrain.parallel.mesh import Mesh
from megatrain.parallel.tensor_parallel import shard_of
from megatrain.tasks.base import DataShare


class Ranks(Protocol):
    """
    Attributes:
        share: of the data, that this rank reads.
        replica: this rank's number among those that can generate texts of their own, and how many there are.
        generation: of this rank.
        counts: whether this rank's results are no copy of another one's: of numbers that each rank has a part of, and
            of examples that several ranks have as wholes.
    """

    share: DataShare
    replica: tuple[int, int]
    generation: generating.Ranks
    counts: tuple[bool, bool]

    def model(
        self, folder: Path, section: ModelSection, weights: Mapping[str, Tensor] | None, dtype: torch.dtype
    ) -> nn.Module:
        """A checkpoint's model, or this rank's part of it, in evaluation mode."""
        ...

    def mine(self, batch: TensorBatch) -> Any:
        """What this rank sees of a batch."""
        ...

    def whole_sequences(self, values_BSX: Tensor) -> Tensor:
        """Of values at the positions that this rank sees, those at all positions. Collective."""
        ...

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank. Collective."""
        ...


class Alone:
    """One process.

    Args:
        device: that the model is on.
    """

    share = DataShare(rank=0, size=1)
    replica = (0, 1)
    counts = (True, True)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.generation: generating.Ranks = generating.Alone()

    def model(
        self, folder: Path, section: ModelSection, weights: Mapping[str, Tensor] | None, dtype: torch.dtype
    ) -> nn.Module:
        values = MergedWeights().read(folder) if weights is None else dict(weights)
        return model_of(folder, section, values).eval().to(device=self._device, dtype=dtype)

    def mine(self, batch: TensorBatch) -> Any:
        return batch.to(self._device)

    def whole_sequences(self, values_BSX: Tensor) -> Tensor:
        return values_BSX

    def gathered(self, value: Any) -> list[Any]:
        return [value]


class OnMesh:
    """Tensor-parallel slices of the weights, context-parallel parts of sequences, and as many replicas as remain;
    no optimizer, no gradients."""

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        self._mesh, self._device = mesh, device
        self.share = DataShare(rank=mesh.data_rank, size=mesh.data_parallel)
        self.replica = mesh.get_data_parallel_rank(), mesh.replicas
        first = mesh.tensor_rank == 0
        self.counts = first, first and mesh.context_rank == 0
        self.generation: generating.Ranks = generating.MeshRanks(
            mesh, forward_is_collective=False, sequence_parallel=False, device=device
        )

    def model(
        self, folder: Path, section: ModelSection, weights: Mapping[str, Tensor] | None, dtype: torch.dtype
    ) -> nn.Module:
        parallel = ResolvedParallel(
            tensor_parallel=self._mesh.tensor_parallel,
            context_parallel=self._mesh.context_parallel,
            zero_stage=0,
            sequence_parallel=False,
            activation_checkpointing="none",
            compile=False,
        )
        model = build_parallel_model(section, parallel, self._mesh, device=self._device, dtype=dtype).eval()
        reader = MergedWeights()
        for name, parameter in model.named_parameters():
            whole = reader.read(folder, [name])[name] if weights is None else weights[name]
            shard = shard_of(parameter)
            parameter.data.copy_(whole if shard is None else shard.of(whole))
        return model

    def mine(self, batch: TensorBatch) -> Any:
        rank, size = self._mesh.context_rank, self._mesh.context_parallel
        return batch.split_sequence(lambda tensor: part_of_sequence(tensor, rank, size)).to(self._device)

    def whole_sequences(self, values_BSX: Tensor) -> Tensor:
        parts = [torch.empty_like(values_BSX) for _ in range(self._mesh.context_parallel)]
        dist.all_gather(parts, values_BSX.contiguous(), group=self._mesh.context_group)
        return torch.cat(parts, dim=1)

    def gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self._mesh.world_size
        dist.all_gather_object(found, value, group=self._mesh.control_group)
        return found
