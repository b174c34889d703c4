"""Validation loss."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist

from megatrain.data.loading.batch import Batch
from megatrain.train.engine import Engine


class Evaluation(NamedTuple):
    loss: float  # mean in nats a target token, over all ranks
    tokens: int  # with a target, over all ranks
    own_loss: float  # summed over this rank's part


def evaluate(engine: Engine, batches: Iterable[Batch]) -> Evaluation:
    """Validation loss over all ranks.

    Args:
        batches: this data-parallel rank's share; every rank has the same number of them.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in batches:
        totals += engine.evaluate(batch)
    own_loss = totals[0].item()
    dist.all_reduce(totals, group=engine.mesh.dp_cp_group)
    loss, tokens = totals.tolist()
    return Evaluation(loss / max(tokens, 1.0), int(tokens), own_loss)
