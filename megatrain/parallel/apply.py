"""The one place that says what is done to a built model, and in which order."""

from collections.abc import Callable

import torch
from torch import nn

from megatrain.config.resolved import ResolvedParallel
from megatrain.model.architecture import ModelSection
from megatrain.model.build import build_model, connect_adapters
from megatrain.model.initialization import materialize
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.activation_offload import offload_block_inputs
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.context_parallel import apply_context_parallel
from megatrain.parallel.float8 import Scaling, apply_float8
from megatrain.parallel.mesh import Mesh
from megatrain.parallel.tensor_parallel import apply_tensor_parallel, sum_replicated_gradients


def build_parallel_model(
    model_config: ModelSection,
    parallel: ResolvedParallel,
    mesh: Mesh,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    float8: Scaling | None = None,
    attach: Callable[[nn.Module], None] = lambda model: None,
    placed: Callable[[str, nn.Parameter], None] = lambda name, parameter: None,
) -> nn.Module:
    """A model with this rank's slices of the weights, ready for DeepSpeed. Memory is all they are: `train.weights` or a
    checkpoint gives them their values, and only the part of them that this rank owns.

    Args:
        dtype: that the model computes in.
        float8: how linear layers scale what they multiply in fp8; None: they multiply in `dtype`.
        attach: hooks to the model what disturbs it in training.
        placed: called with (name, slice) before the next slice is made, so that ZeRO-3 can keep a part of it only.
    """
    with torch.device("meta"):
        model = build_model(model_config, connected=False)
    sequence_parallel = parallel.sequence_parallel
    # 1. What a layer is before what is attached to it.
    if float8 is not None:
        size, emulate = mesh.tensor_parallel, torch.device(device).type == "cpu"
        apply_float8(model, model_config, float8, tensor_parallel=size, emulate=emulate)
    # 2. Slices and collectives: checkpointing must recompute them, and compile must see them.
    apply_tensor_parallel(model, model_config, mesh.tensor_group, sequence_parallel=sequence_parallel)
    apply_context_parallel(model, mesh.context_group)
    connect_adapters(model)  # they work on what has left a region
    # 3. Only what is left of each weight becomes real, one after the other.
    materialize(model, lambda _, p: torch.empty(p.shape, dtype=dtype, device=device), device, dtype, placed=placed)
    # 4. Hooks on parameters need the real ones.
    sum_replicated_gradients(model, model_config, mesh.tensor_group, sequence_parallel=sequence_parallel)
    # 5. Noise is of what modules give once it is whole, and is drawn again where that is recomputed.
    attach(model)
    # 6. Checkpointing wraps a block's forward, collectives on its modules included.
    some = parallel.recompute_blocks if isinstance(parallel.recompute_blocks, int) else None
    apply_activation_checkpointing(model, parallel.activation_checkpointing, some)
    # 7. Compile, so that one graph holds the block and what was done to it.
    if parallel.compile:
        compile_blocks(model)
    # 8. Copies to the host, outside of the graph.
    if parallel.activation_checkpointing == "offload":
        offload_block_inputs(model, some)
    return model
