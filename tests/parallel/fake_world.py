"""One rank of any world in this process: torch's fake process group, whose collectives send nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def fake_world(world_size: int, rank: int) -> Iterator[list[list[int]]]:
    """Yields the ranks of each group that is asked for meanwhile, as they are."""
    asked: list[list[int]] = []
    real = dist.new_group

    def new_group(
        ranks: list[int] | None = None, timeout: timedelta | None = None, backend: str | None = None, **settings: object
    ) -> object:
        asked.append(list(range(world_size)) if ranks is None else list(ranks))
        return real(ranks, timeout, **settings)  # never over gloo, which would wait for the others

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "new_group", new_group)
        try:
            yield asked
        finally:
            dist.destroy_process_group()
