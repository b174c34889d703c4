"""Texts from the model that is being trained, where and how it lies: prompts are shared out over the replicas."""

from collections.abc import Callable, Sequence

import torch.distributed as dist

from megatrain.config.resolved import ResolvedParallel
from megatrain.generation.decode import Ends, continued, with_cache
from megatrain.generation.ranks import MeshRanks
from megatrain.generation.sampling import Sampling
from megatrain.train.engine import Engine

_NOTHING = [0]  # what a rank feeds that has no prompt, where all have to take part


def generate_on_layout(
    engine: Engine,
    parallel: ResolvedParallel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    ends: Ends,
    vocab_size: int,
    batch_size: int,
    longest: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """What follows each prompt, on every rank; see `generation.decode.continued`. Collective.

    Args:
        prompts: of all ranks, the same on each.
        batch_size: prompts at once, on a replica.
        beat: called between them.
    """
    mesh = engine.mesh
    ranks = MeshRanks(
        mesh,
        forward_is_collective=engine.forward_is_collective,
        sequence_parallel=parallel.sequence_parallel,
        device=engine.device,
    )
    mine: dict[int, list[int]] = {}
    at_once = batch_size * mesh.replicas
    with engine.evaluating() as (module, call):
        for first in range(0, len(prompts), at_once):
            beat()
            numbers = range(first, min(first + at_once, len(prompts)))[mesh.get_data_parallel_rank() :: mesh.replicas]
            given = [prompts[number] for number in numbers] or [_NOTHING]
            places = max(map(len, given)) + max_new_tokens
            with with_cache(module, places=places, call=call, ranks=ranks) as next_logits:
                made = continued(
                    next_logits,
                    given,
                    sampling,
                    max_new_tokens=max_new_tokens if numbers else 0,
                    ends=ends,
                    vocab_size=vocab_size,
                    seeds=list(numbers) or [0],
                    longest=longest,
                    ranks=ranks,
                )
            mine |= dict(zip(numbers, made, strict=False))
    everyones: list[dict[int, list[int]]] = [{}] * mesh.world_size
    dist.all_gather_object(everyones, mine, group=mesh.control_group)
    found = {number: tokens for one in everyones for number, tokens in one.items()}
    return [found[number] for number in range(len(prompts))]
