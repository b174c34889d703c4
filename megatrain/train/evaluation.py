"""One pass over the validation data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.train.engine import Engine


def evaluate(engine: Engine, batches: Iterable[TensorBatch]) -> tuple[dict[str, Any], Mapping[str, float]]:
    """The objective's evaluation sums and records over all ranks, and this rank's part of the sums; of records, the sum
    of all their numbers, which tells whether they are finite.

    Args:
        batches: this data-parallel rank's share, at least one; every rank has the same number of them.
    """
    names: list[str] = []
    totals = torch.zeros(0)
    records: dict[str, list[Tensor]] = {}
    for batch in batches:
        sums = engine.evaluate(batch)
        for name in [name for name, value in sums.items() if value.ndim == 2]:
            records.setdefault(name, []).append(sums.pop(name))
        values = torch.stack(list(sums.values()))
        names, totals = list(sums), totals + values if names else values
    own = totals.tolist()
    dist.all_reduce(totals, group=engine.mesh.dp_cp_group)
    found: dict[str, Any] = dict(zip(names, totals.tolist(), strict=True))
    mine = dict(zip(names, own, strict=True))
    for name, parts in records.items():
        joined = torch.cat(parts)
        mine[name] = float(joined.sum())
        found[name] = _gathered(joined, engine.mesh.dp_cp_group)
    return found, mine


def _gathered(records_NK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Those of all ranks, which may have different numbers of them, on the CPU."""
    size, ranks = torch.tensor([len(records_NK)], device=records_NK.device), dist.get_world_size(group)
    sizes = [torch.empty_like(size) for _ in range(ranks)]
    dist.all_gather(sizes, size, group=group)
    lengths = [int(one) for one in sizes]
    padded = records_NK.new_zeros(max(1, *lengths), records_NK.shape[1])
    padded[: len(records_NK)] = records_NK
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).cpu()
