"""A resolved run and its ranks -> what disturbs its training."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatrain.config.resolved import ResolvedFinetune, ResolvedRun
from megatrain.parallel.collectives import all_reduce
from megatrain.parallel.context_parallel import part_of_sequence
from megatrain.parallel.mesh import Mesh
from megatrain.perturbation.adversarial import Adversary
from megatrain.perturbation.attach import NoiseAmounts, attach_noise
from megatrain.perturbation.noise import Noise


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What disturbs the training of a run; None: nothing of the kind."""

    config: ResolvedRun
    amounts: NoiseAmounts
    noise: Noise | None = None
    adversary: Adversary | None = None

    def attach(self, model: nn.Module, device: torch.device | str) -> None:
        """Hook it to a model whose modules have their collectives."""
        if self.noise is not None:
            attach_noise(model, self.config.model, self.noise, self.amounts, device)
        if self.adversary is not None:
            self.adversary.attach(model)


def perturbation_of(config: ResolvedRun, mesh: Mesh) -> Perturbation:
    finetune = config.finetune if isinstance(config, ResolvedFinetune) else None
    amounts = NoiseAmounts(
        dropout=config.training.dropout,
        embedding_dropout=config.training.embedding_dropout,
        neftune=finetune.neftune if finetune else 0.0,
    )
    tensor_rank, tensor_size = dist.get_rank(mesh.tensor_group), dist.get_world_size(mesh.tensor_group)
    sequence_parallel = config.parallel.sequence_parallel

    def between_layers(whole_BS: Tensor) -> Tensor:
        mine_BS = part_of_sequence(whole_BS, mesh.context_rank, mesh.context_parallel)
        return part_of_sequence(mine_BS, tensor_rank, tensor_size) if sequence_parallel else mine_BS

    def over_sequence(own: Tensor) -> Tensor:
        if mesh.context_parallel > 1:
            own = all_reduce(own, mesh.context_group)
        return all_reduce(own, mesh.tensor_group) if sequence_parallel else own

    noise = adversary = None
    if amounts:
        noise = Noise(
            config.run.seed,
            data_rank=mesh.data_rank,
            data_size=mesh.data_parallel,
            sequence_parts=mesh.context_parallel,
            part=between_layers,
            copies=2 if finetune and finetune.r_drop else 1,
        )
    if finetune is not None and finetune.adversarial is not None:
        adversary = Adversary(
            finetune.adversarial,
            sequence_parts=mesh.context_parallel,
            part=between_layers,
            whole_sum=over_sequence,
        )
    return Perturbation(config, amounts, noise, adversary)
