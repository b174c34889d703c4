"""The engine on one rank: gradients in, updates out, and nothing of what a batch holds."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from megatrain.base.errors import ConfigError
from megatrain.data.loading.tensor_batch import SPLIT_SEQUENCE, TensorBatch
from megatrain.parallel.mesh import Mesh
from megatrain.tasks.base import LossSums
from megatrain.topology import Topology


@dataclass(frozen=True, slots=True)
class Points(TensorBatch):
    x: Tensor = field(metadata=SPLIT_SEQUENCE)
    y: Tensor


class Squares:
    """Regression: a task that has no tokens."""

    def loss(self, model, batch: Points) -> LossSums:
        error = model(batch.x)[:, 0] - batch.y
        return LossSums(error.square().sum(), {"error": error.detach().abs().sum()})

    def evaluation_sums(self, model, batch: Points) -> dict[str, Tensor]:
        return {"squares": self.loss(model, batch).loss, "count": torch.tensor(len(batch.y))}


@pytest.fixture
def make_engine(rank_of):
    """make_engine(zero_stage): an engine of a linear model with plain SGD at a rate that the test gives."""
    from megatrain.train.engine import Engine

    def make(zero_stage: int = 0, clipping: float = 0.0) -> tuple[Engine, nn.Linear]:
        rank_of(1, 0)
        model = nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 0.5}], lr=0.0)
        config = {
            "train_batch_size": 2,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
        }
        mesh = Mesh(Topology(world_size=1))
        engine = Engine(
            model, optimizer, mesh, config, objective=Squares(), leaf_modules=[], gradient_clipping=clipping
        )
        with torch.no_grad():
            model.weight.fill_(1.0)
        return engine, model

    return make


def points(x: list[list[float]], y: list[float]) -> Points:
    return Points(torch.tensor(x), torch.tensor(y))


def test_a_step_is_that_of_the_summed_loss_over_all_targets(make_engine) -> None:
    engine, model = make_engine()
    first = engine.forward_backward(points([[1.0, 2.0]], [1.0]), targets=4)
    assert (first.loss.item(), first.extras["error"].item(), first.loss.requires_grad) == (4.0, 2.0, False)
    assert engine.step(0.1) == 0.0, "no update before the last micro-batch"
    engine.forward_backward(points([[0.0, 1.0]], [3.0]), targets=4)
    norm = engine.step(0.1)
    gradient = torch.tensor([[2 * 2 * 1.0, 2 * 2 * 2.0 - 2 * 2 * 1.0]]) / 4
    assert norm == pytest.approx(gradient.norm().item())
    torch.testing.assert_close(model.weight.detach(), 1.0 - 0.1 * 0.5 * gradient)


def test_the_norm_is_clipped_without_zero(make_engine) -> None:
    engine, model = make_engine(clipping=0.5)
    for _ in range(2):
        engine.forward_backward(points([[3.0, 4.0]], [0.0]), targets=1)
        norm = engine.step(1.0)
    assert norm == pytest.approx(2 * 2 * 7 * 5)
    assert (model.weight.detach() - 1.0).norm() == pytest.approx(0.5 * 0.5)


def test_an_evaluation_is_in_fp64_and_leaves_no_gradient(make_engine) -> None:
    engine, model = make_engine()
    sums = engine.evaluate(points([[1.0, 1.0], [2.0, 0.0]], [0.0, 0.0]))
    assert sums == {"squares": torch.tensor(8.0), "count": torch.tensor(2.0)}
    assert {value.dtype for value in sums.values()} == {torch.float64}
    assert model.training
    assert model.weight.grad is None


def test_state_that_no_checkpoint_would_hold_is_refused(make_engine) -> None:
    engine, _ = make_engine()
    engine.check_optimizer_state(())
    with pytest.raises(ConfigError, match="SGD keeps nothing, but is registered with the state exp_avg"):
        engine.check_optimizer_state(("exp_avg",))
