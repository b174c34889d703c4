"""The one place that says what is done to a built model, and in which order."""

from functools import partial

import torch
from torch import Tensor, nn

from megatrain.config import ModelSection, ParallelSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.transformer import Transformer
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.context_parallel import apply_context_parallel
from megatrain.parallel.mesh import Mesh
from megatrain.parallel.tensor_parallel import apply_tensor_parallel, shard_of, sum_replicated_gradients


def build_parallel_model(
    model_config: ModelSection, parallel: ParallelSection, mesh: Mesh, *, seed: int, device: torch.device | str = "cpu"
) -> Transformer:
    """A model with this rank's fp32 weights, ready for DeepSpeed.

    Args:
        parallel: resolved; no "auto" is left in it.
        seed: of the initial weights, which are the same for every layout.
    """
    with torch.device("meta"):
        model = Transformer(model_config)
    sequence_parallel = parallel.sequence_parallel is True
    # 1. Slices and collectives first: checkpointing must recompute them, and compile must see them.
    apply_tensor_parallel(model, mesh.tensor_group, sequence_parallel=sequence_parallel)
    apply_context_parallel(model, mesh.context_group)
    # 2. Only what is left of each weight becomes real.
    materialize(model, partial(_initial_part, config=model_config, seed=seed), device)
    # 3. Hooks on parameters need the real ones.
    if sequence_parallel:
        sum_replicated_gradients(model, mesh.tensor_group)
    # 4. Checkpointing wraps a block's forward, collectives on its modules included.
    if parallel.activation_checkpointing != "auto":
        apply_activation_checkpointing(model, parallel.activation_checkpointing)
    # 5. Compile last, so that one graph holds the block and what was done to it.
    if parallel.compile:
        compile_blocks(model)
    return model


def _initial_part(name: str, parameter: nn.Parameter, *, config: ModelSection, seed: int) -> Tensor:
    shard = shard_of(parameter)
    whole_shape = list(parameter.shape)
    if shard is not None:
        whole_shape[shard.dim] *= shard.count
    whole = initial_weight(name, torch.Size(whole_shape), config, seed)
    return whole if shard is None else shard.of(whole).clone()
