"""Context parallelism: each rank of a group sees a part of every sequence (DeepSpeed-Ulysses, arXiv 2309.14509).

All but attention works on positions one by one. Around attention two all-to-alls turn a part of the sequence of all
heads into the whole sequence of a part of the heads, and back:

    [B, S/c, H, K] ── all_to_all ──► [B, S, H/c, K] ── attention ──► [B, S, H/c, K] ── all_to_all ──► [B, S/c, H, K]

Every rank then attends over whole sequences, so that causality costs all of them the same, and masks stay as they are.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatrain.model.attention import AttentionCore
from megatrain.model.lm_head import ClassHead
from megatrain.parallel import collectives
from megatrain.parallel.collectives import SEQUENCE

HEADS = 2  # of [B, S, H, K]


def apply_context_parallel(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Attach the all-to-alls to every attention as hooks, in place."""
    if dist.get_world_size(group) == 1:
        return
    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.register_forward_pre_hook(lambda _, inputs: _enter(inputs, group))
            module.register_forward_hook(lambda _, inputs, output: _leave(output, group))
        if isinstance(module, ClassHead) and module.of_tokens:
            module.register_forward_hook(lambda _, inputs, output: _whole_logits(output, group))


def part_of_sequence(x: Tensor, rank: int, size: int) -> Tensor:
    """What the rank of a context-parallel group sees of [B, S, …]."""
    return x if size == 1 else x.chunk(size, SEQUENCE)[rank].contiguous()


def _whole_logits(output: Any, group: dist.ProcessGroup) -> Any:
    """[B, S, labels] of whole sequences; a loss stays what it is."""
    return collectives.gather_sequence(output, group) if isinstance(output, Tensor) and output.ndim == 3 else output


def _enter(inputs: tuple[Any, ...], group: dist.ProcessGroup) -> tuple[Any, ...]:
    """Queries, keys and values in one message: side by side for each rank that gets them."""
    ranks = dist.get_world_size(group)
    queries_keys_values, rest = inputs[:3], inputs[3:]
    pieces = [x.chunk(ranks, HEADS) for x in queries_keys_values]
    joined = torch.cat([piece[rank] for rank in range(ranks) for piece in pieces], HEADS)
    whole = collectives.all_to_all(joined, group, split=HEADS, join=SEQUENCE)
    return *whole.split([x.shape[HEADS] // ranks for x in queries_keys_values], HEADS), *rest


def _leave(output: Tensor, group: dist.ProcessGroup) -> Tensor:
    return collectives.all_to_all(output, group, split=SEQUENCE, join=HEADS)
