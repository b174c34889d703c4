"""Values and gradients of each differentiable collective, over ranks that are threads of this process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed import multi_threaded_pg

from megatrain.parallel import collectives

B, S, D = 2, 12, 6  # 2, 3 and 4 ranks divide S, 2 and 3 divide D

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # names that torch 2.13 has changed


@pytest.fixture
def on_ranks() -> Iterator[Callable[[int, Callable[[int], Tensor]], list[Tensor]]]:
    """on_ranks(count, function): function(rank) in a process group of so many threads; the results by rank."""

    def run(count: int, function: Callable[[int], Tensor]) -> list[Tensor]:
        store = dist.HashStore()

        def one(rank: int) -> Tensor:
            dist.init_process_group("threaded", rank=rank, world_size=count, store=store)
            try:
                return function(rank)
            finally:
                dist.destroy_process_group()

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    multi_threaded_pg._install_threaded_pg()
    yield run
    multi_threaded_pg._uninstall_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(False)


def part(x: Tensor, rank: int, count: int, dim: int) -> Tensor:
    return x.chunk(count, dim)[rank]


# What a rank has afterwards of the tensors that all ranks had before, forward and backward.
EXPECTED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "copy_to_region": (lambda x, r: x[r], lambda g, r: sum(g)),
    "reduce_from_region": (lambda x, r: sum(x), lambda g, r: g[r]),
    "gather_sequence": (lambda x, r: torch.cat(x, 1), lambda g, r: part(sum(g), r, len(g), 1)),
    "scatter_sequence": (lambda x, r: part(sum(x), r, len(x), 1), lambda g, r: torch.cat(g, 1)),
}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", EXPECTED)
def test_tensor_parallel_regions_are_conjugate_pairs(on_ranks, name: str, count: int) -> None:
    forward, backward = EXPECTED[name]
    inputs = [torch.randn(B, S, D) for _ in range(count)]
    wanted = [forward(inputs, rank) for rank in range(count)]
    gradients = [torch.randn_like(out) for out in wanted]

    def one(rank: int) -> tuple[Tensor, Tensor]:
        x = inputs[rank].clone().requires_grad_()
        y = getattr(collectives, name)(x, dist.group.WORLD)
        y.backward(gradients[rank])
        return y.detach(), x.grad

    for rank, (y, grad) in enumerate(on_ranks(count, one)):
        torch.testing.assert_close(y, wanted[rank])
        torch.testing.assert_close(grad, backward(gradients, rank))


@pytest.mark.parametrize(("split", "join"), [(1, 2), (2, 1)], ids=["to heads", "to sequence"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_to_all_splits_one_dimension_and_joins_another(on_ranks, count: int, split: int, join: int) -> None:
    inputs = [torch.randn(B, S, D) for _ in range(count)]

    def exchanged(tensors: list[Tensor], rank: int, split: int, join: int) -> Tensor:
        return torch.cat([part(x, rank, count, split) for x in tensors], join)

    wanted = [exchanged(inputs, rank, split, join) for rank in range(count)]
    gradients = [torch.randn_like(out) for out in wanted]

    def one(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        x = inputs[rank].clone().requires_grad_()
        y = collectives.all_to_all(x, dist.group.WORLD, split=split, join=join)
        y.backward(gradients[rank])
        return y.detach(), collectives.all_to_all(y.detach(), dist.group.WORLD, split=join, join=split), x.grad

    for rank, (y, back, grad) in enumerate(on_ranks(count, one)):
        assert torch.equal(y, wanted[rank])
        assert torch.equal(back, inputs[rank]), "its inverse is the other direction"
        assert torch.equal(grad, exchanged(gradients, rank, join, split))


@pytest.mark.parametrize("op", ["sum", "max"])
def test_all_reduce_of_sums_and_maxima(on_ranks, op: str) -> None:
    inputs = [torch.randn(D) for _ in range(3)]
    stacked = torch.stack(inputs)
    wanted = stacked.sum(0) if op == "sum" else stacked.amax(0)
    for got in on_ranks(3, lambda rank: collectives.all_reduce(inputs[rank], dist.group.WORLD, op)):
        torch.testing.assert_close(got, wanted)
