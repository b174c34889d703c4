"""Sequences shared by ranks: on one rank no hooks are attached to a model; the numbers are in tests/distributed."""

import torch
import torch.distributed as dist

from megatrain.parallel.context_parallel import apply_context_parallel, part_of_sequence


def test_parts_of_a_sequence_are_the_sequence():
    x = torch.arange(24).reshape(2, 12)
    parts = [part_of_sequence(x, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), x)
    assert all(part.is_contiguous() for part in parts)
    assert part_of_sequence(x, 0, 1) is x


def test_alone_a_model_stays_as_it_is(one_rank, make_model):
    model = make_model()
    apply_context_parallel(model, dist.group.WORLD)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
