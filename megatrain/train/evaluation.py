"""Validation loss."""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from megatrain.data.loading.batch import Batch
from megatrain.kernels.cross_entropy import IGNORE_INDEX
from megatrain.train.engine import Engine


def evaluate(engine: Engine, batches: Iterable[Batch]) -> tuple[float, int]:
    """Mean loss in nats a target token, and the number of target tokens, over all data-parallel ranks.

    Args:
        batches: this rank's share; every rank has the same number of them.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        totals[0] += engine.evaluate(batch)
        totals[1] += (batch.labels != IGNORE_INDEX).sum()
    dist.all_reduce(totals, group=engine.mesh.data_group)
    loss, tokens = totals.tolist()
    return loss / max(tokens, 1.0), int(tokens)
