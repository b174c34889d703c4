"""A resolved run and its ranks -> what disturbs its training."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatrain.config.resolved import ResolvedFinetune, ResolvedRun
from megatrain.parallel.context_parallel import part_of_sequence
from megatrain.parallel.mesh import Mesh
from megatrain.perturbation.attach import NoiseAmounts, attach_noise
from megatrain.perturbation.noise import Noise


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What disturbs the training of a run; None: nothing of the kind."""

    config: ResolvedRun
    amounts: NoiseAmounts
    noise: Noise | None = None

    def attach(self, model: nn.Module, device: torch.device | str) -> None:
        """Hook it to a model whose modules have their collectives."""
        if self.noise is not None:
            attach_noise(model, self.config.model, self.noise, self.amounts, device)


def perturbation_of(config: ResolvedRun, mesh: Mesh) -> Perturbation:
    amounts = NoiseAmounts(
        dropout=config.training.dropout,
        embedding_dropout=config.training.embedding_dropout,
        neftune=config.finetune.neftune if isinstance(config, ResolvedFinetune) else 0.0,
    )
    if not amounts:
        return Perturbation(config, amounts)
    tensor_rank, tensor_size = dist.get_rank(mesh.tensor_group), dist.get_world_size(mesh.tensor_group)

    def between_layers(whole_BS: Tensor) -> Tensor:
        mine_BS = part_of_sequence(whole_BS, mesh.context_rank, mesh.context_parallel)
        return part_of_sequence(mine_BS, tensor_rank, tensor_size) if config.parallel.sequence_parallel else mine_BS

    noise = Noise(
        config.run.seed,
        data_rank=mesh.data_rank,
        data_size=mesh.data_parallel,
        sequence_parts=mesh.context_parallel,
        part=between_layers,
    )
    return Perturbation(config, amounts, noise)
