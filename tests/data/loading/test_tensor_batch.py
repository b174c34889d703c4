from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatrain.data.loading.tensor_batch import ON_HOST, SPLIT_SEQUENCE, TensorBatch


@dataclass(frozen=True, slots=True)
class Pairs(TensorBatch):
    tokens: Tensor = field(metadata=SPLIT_SEQUENCE)
    scores: Tensor
    lengths: Tensor = field(metadata=ON_HOST)
    bounds: Tensor | None = field(default=None, metadata=SPLIT_SEQUENCE)


def pairs() -> Pairs:
    return Pairs(torch.arange(8).view(2, 4), torch.ones(2), torch.tensor([4, 3]))


def test_context_parallel_ranks_share_the_fields_that_say_so() -> None:
    part = pairs().split_sequence(lambda tensor: tensor[:, 2:])
    assert part.tokens.tolist() == [[2, 3], [6, 7]]
    assert (part.scores.shape, part.lengths.tolist(), part.bounds) == ((2,), [4, 3], None)


def test_what_stays_on_the_host_is_not_moved() -> None:
    moved = pairs().to(torch.device("meta"))
    assert [moved.tokens.is_meta, moved.scores.is_meta, moved.lengths.is_meta] == [True, True, False]
