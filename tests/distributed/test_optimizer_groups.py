"""Each parameter group has a learning rate and a decay of its own, under every stage; state that a checkpoint could
not hold is refused."""

import pytest
import torch

from megatrain.base.errors import ConfigError
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec
from tests.distributed.layouts import Layout, Run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUTS = [Layout(zero, 1, 2, precision) for precision in ("fp32", "bf16") for zero in (0, 1, 2, 3)]


def moved(layout: Layout) -> dict[str, bool]:
    """Which weights a step changes where the groups that do not decay, those of norms, have a rate of zero."""
    run = Run(layout)
    for group in run.engine._engine.optimizer.param_groups:
        if group["weight_decay"] == 0:
            group["lr_scale"] = 0.0
    before = {name: piece._flat.clone() for name, piece in run.engine.sharded_state(weights_only=True).items()}
    run.train(0, 1)
    after = run.engine.sharded_state(weights_only=True)
    return {name: not torch.equal(before[name], after[name]._flat) for name in before}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_group_whose_rate_is_scaled_to_zero_stays(ranks: RankPool, layout: Layout) -> None:
    for found in ranks.run(2, moved, layout):
        assert found
        assert {name: changed == ("norm" not in name) for name, changed in found.items()} == dict.fromkeys(found, True)


def refused(state: tuple[str, ...], optimizer: str) -> str:
    spec = OptimizerSpec(section=OptimizerSection, optimizer=optimizer, arguments=lambda section: {}, state=state)
    OPTIMIZERS._entries["toy"] = spec
    with pytest.raises(ConfigError) as error:
        Run(Layout(0, 1, 1), OptimizerSection(name="toy"))
    return str(error.value)


def test_state_that_is_not_named_is_refused(ranks: RankPool) -> None:
    (message,) = ranks.run(1, refused, ("exp_avg",), "torch.optim:AdamW")
    assert "AdamW keeps exp_avg, exp_avg_sq, but is registered with the state exp_avg" in message


def test_factored_state_is_refused(ranks: RankPool) -> None:
    (message,) = ranks.run(1, refused, ("row_var", "col_var"), "torch.optim:Adafactor")
    assert "Adafactor keeps row_var of shape" in message
    assert "a checkpoint holds state of a weight's shape only" in message
