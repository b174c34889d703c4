from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module

import pytest
import torch.distributed as dist

from tests.parallel.fake_world import fake_world


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process as a process group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def rank_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """rank_of(world_size): this process is rank 5 of so many, and DeepSpeed believes it."""
    import deepspeed.comm.comm as comm

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(comm, "cdb", None)
    for name in ("parameter_offload", "partition_parameters", "partitioned_param_coordinator", "stage3"):
        module = import_module(f"deepspeed.runtime.zero.{name}")  # ranks that are not there agree on nothing
        for check in ("assert_ints_same_as_other_ranks", "assert_lst_len_same_as_other_ranks"):
            monkeypatch.setattr(module, check, lambda *_: None, raising=False)
    with ExitStack() as stack:
        yield lambda world_size, rank=5: stack.enter_context(fake_world(world_size, rank))
