"""z-loss and label smoothing give the same losses under every layout, and the cross-entropy beside them."""

import pytest
import torch
import torch.distributed as dist

from megatrain.kernels.cross_entropy import LossTerms
from tests.distributed.layouts import GLOBAL_BATCH, SEQUENCE, Layout, Run, rate_at
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUTS = [
    Layout(1, 2, 2, "fp32"),
    Layout(3, 2, 1, sequence_parallel=True, context=2),
    Layout(2, 1, 2, tied=True),
    pytest.param(Layout(1, 2, 1, compile=True, checkpointing="selective"), marks=pytest.mark.full),
]


def losses(layout: Layout) -> list[tuple[float, float]]:
    """Per target token, of a few steps: the loss, and the cross-entropy in it."""
    from megatrain.tasks.causal_lm import CausalLM

    run = Run(layout, objective=CausalLM(LossTerms(z_loss=1e-2, label_smoothing=0.1)))
    found, targets = [], GLOBAL_BATCH * SEQUENCE
    for step in range(4):
        sums = torch.zeros(2)
        for batch in run.micro_batches(step):
            loss, extras = run.engine.forward_backward(batch, targets)
            sums += torch.stack((loss, extras["cross_entropy"]))
            run.engine.step(rate_at(step))
        dist.all_reduce(sums, group=run.mesh.dp_cp_group)
        found.append(tuple((sums / targets).tolist()))
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_of_one_rank(ranks: RankPool, layout: Layout) -> None:
    (alone,) = ranks.run(1, losses, Layout(0, 1, 1, tied=layout.tied))
    assert all(loss > cross_entropy + 0.1 for loss, cross_entropy in alone)
    for found in ranks.run(layout.world_size, losses, layout):
        for step, expected in zip(found, alone, strict=True):
            assert step == pytest.approx(expected, rel=2e-6)
