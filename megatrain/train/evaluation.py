"""Validation loss."""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from megatrain.data.loading.batch import Batch
from megatrain.train.engine import Engine


def evaluate(engine: Engine, batches: Iterable[Batch]) -> tuple[float, int]:
    """Mean loss in nats a target token, and the number of target tokens, over all ranks.

    Args:
        batches: this data-parallel rank's share; every rank has the same number of them.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        totals += engine.evaluate(batch)
    dist.all_reduce(totals, group=engine.mesh.replica_group)
    loss, tokens = totals.tolist()
    return loss / max(tokens, 1.0), int(tokens)
