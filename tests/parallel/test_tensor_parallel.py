import re

import pytest
import torch
import torch.distributed as dist

from megatrain.model.architecture import row_of
from megatrain.model.family import FAMILIES
from megatrain.parallel.tensor_parallel import Shard, apply_tensor_parallel, shard_of


def test_every_matrix_is_split_and_nothing_else(make_model, section) -> None:
    for name, parameter in make_model().named_parameters():
        assert (row_of(section, name).split is not None) == (parameter.ndim == 2), name


def test_every_region_finds_its_modules(make_model, section) -> None:
    """A renamed module must not quietly become a replicated one."""
    names = [name for name, _ in make_model().named_modules()]
    for pattern in FAMILIES.get(section.family).regions:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_make_up_the_whole(dim, count) -> None:
    whole = torch.arange(8 * 12).view(8, 12)
    shards = [Shard(dim, index, count).of(whole) for index in range(count)]
    assert len({shard.shape for shard in shards}) == 1
    assert torch.equal(torch.cat(shards, dim), whole)


def test_one_rank_changes_nothing(one_rank, make_model, section) -> None:
    model = make_model()
    before = dict(model.named_parameters())
    apply_tensor_parallel(model, section, dist.group.WORLD, sequence_parallel=True)
    assert all(p is before[name] and shard_of(p) is None for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
