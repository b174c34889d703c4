"""One pass over the validation data."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist

from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.train.engine import Engine


def evaluate(engine: Engine, batches: Iterable[TensorBatch]) -> tuple[dict[str, float], Mapping[str, float]]:
    """The objective's evaluation sums over all ranks, and this rank's part of them.

    Args:
        batches: this data-parallel rank's share, at least one; every rank has the same number of them.
    """
    names: list[str] = []
    totals = torch.zeros(0)
    for batch in batches:
        sums = engine.evaluate(batch)
        values = torch.stack(list(sums.values()))
        names, totals = list(sums), totals + values if names else values
    own = totals.tolist()
    dist.all_reduce(totals, group=engine.mesh.dp_cp_group)
    return dict(zip(names, totals.tolist(), strict=True)), dict(zip(names, own, strict=True))
