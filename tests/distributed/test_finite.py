"""What is not finite on one rank stops all of them, before it is kept or saved, under every stage and precision."""

import math
import re

import pytest
import torch
import torch.distributed as dist

from megatrain.base.errors import NonFiniteError
from megatrain.base.progress import Progress
from megatrain.optim.adafactor import AdafactorSection
from megatrain.optim.muon import MuonSection
from megatrain.optim.registry import OPTIMIZERS, OptimizerSection, OptimizerSpec
from megatrain.run.directory import RunDir
from megatrain.tasks.base import LossSums
from megatrain.tasks.causal_lm import CausalLM
from tests.distributed.layouts import GLOBAL_BATCH, SEQUENCE, Layout, Run, config_of, rate_at
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUTS = [Layout(zero, 1, 2, precision) for precision in ("fp32", "bf16") for zero in (0, 1, 2, 3)]
LAYOUTS += [Layout(0, 2, 1, "bf16"), Layout(1, 2, 1), Layout(3, 2, 1)]


class AddedLoss(CausalLM):
    def __init__(self, added: float) -> None:
        super().__init__()
        self._added = added

    def loss(self, model, batch):
        return LossSums(super().loss(model, batch).loss + self._added)


class SGDSection(OptimizerSection):
    name: str = "sgd"
    momentum: float


def sgd(momentum: float) -> SGDSection:
    """Registered on this rank, as by an extension."""
    spec = OptimizerSpec(
        section=SGDSection, optimizer="torch.optim:SGD", arguments=momentum_of, state=("momentum_buffer",)
    )
    OPTIMIZERS.register("sgd", spec)
    return SGDSection(momentum=momentum)


def momentum_of(section: SGDSection) -> dict[str, float]:
    return {"momentum": section.momentum}


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Weights, moments and the optimizer's count of updates."""
    optimizer = run.engine._engine.optimizer
    steps = [state.get("step", 0) for state in getattr(optimizer, "optimizer", optimizer).state.values()]
    tensors = {name: piece._flat.clone() for name, piece in run.engine.sharded_state().items()}
    return tensors | {"steps": torch.as_tensor(steps)}


def one_step(run: Run, step: int, *, added_loss: float = 0.0, targets: float = GLOBAL_BATCH * SEQUENCE) -> float:
    """A step of a run whose loss has something added on the last rank."""
    engine, objective = run.engine, run.engine._objective
    if dist.get_rank() == dist.get_world_size() - 1:
        engine._objective = AddedLoss(added_loss)
    for batch in run.micro_batches(step):
        engine.forward_backward(batch, targets)
        norm = engine.step(rate_at(step))
    engine._objective = objective
    return norm


def a_bad_step(
    layout: Layout, bad: dict[str, float], momentum: float | None = None, section: OptimizerSection | None = None
) -> tuple[float, bool, bool]:
    """Its norm; whether it changed anything; whether a good step after it did.

    Args:
        momentum: of SGD, which looks at no `found_inf`, instead of AdamW.
        section: of another optimizer.
    """
    run = Run(layout, sgd(momentum) if momentum is not None else section)
    for step in range(2):
        one_step(run, step)
    before = state_of(run)
    norm = one_step(run, 2, **bad)
    after = state_of(run)
    one_step(run, 3)
    later = state_of(run)
    return norm, *(any(not torch.equal(before[name], now[name]) for name in now) for now in (after, later))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("bad", [{"added_loss": math.inf}, {"targets": 1e-38}], ids=["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing(ranks: RankPool, layout: Layout, bad: dict[str, float]) -> None:
    """Nor does any after it: the step that is named is the first that nothing came of."""
    assert ranks.run(2, a_bad_step, layout, bad) == [(math.inf, False, False)] * 2


@pytest.mark.parametrize("layout", LAYOUTS[::3], ids=str)
def test_nor_with_an_optimizer_that_does_not_look(ranks: RankPool, layout: Layout) -> None:
    assert ranks.run(2, a_bad_step, layout, {"added_loss": math.inf}, 0.9) == [(math.inf, False, False)] * 2


@pytest.mark.parametrize("layout", LAYOUTS[::3], ids=str)
def test_nor_with_muon(ranks: RankPool, layout: Layout) -> None:
    found = ranks.run(2, a_bad_step, layout, {"added_loss": math.inf}, None, MuonSection())
    assert found == [(math.inf, False, False)] * 2


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nor_with_adafactor(ranks: RankPool, layout: Layout) -> None:
    found = ranks.run(2, a_bad_step, layout, {"added_loss": math.inf}, None, AdafactorSection())
    assert found == [(math.inf, False, False)] * 2


def what_the_guard_says(layout: Layout, folder: str, case: str) -> str:
    """On this rank, where rank 1 alone has seen something."""
    from megatrain.train.finite import FiniteGuard

    run, mine = Run(layout), dist.get_rank() == 1
    guard = FiniteGuard(config_of(layout), RunDir(folder), run.mesh.control_group, run.engine.device)
    progress = Progress().after_step(8).after_step(8)
    try:
        if case == "loss":
            guard.step(progress, torch.tensor(math.nan if mine else 2.0), math.inf)
        elif case == "norm":
            guard.step(progress, torch.tensor(2.0), math.inf)
        elif case == "validation":
            guard.evaluation(progress, {"validation_loss": math.nan}, {"loss": math.nan if mine else 2.0})
        elif case == "weights":
            if mine:
                run.engine.sharded_state()["weight.norm.weight"]._flat[-1] = math.nan
            guard.saving(progress, run.engine.not_finite())
        else:  # as on a GPU: norms are looked at when the host waits anyway
            for loss, norm in ((2.0, 1.0), (math.nan if mine else 2.0, math.inf), (2.0, 1.0), (math.inf, math.nan)):
                progress = progress.after_step(8)
                guard.note(progress, torch.tensor(loss), torch.tensor(norm))
            guard.demand(progress)
    except NonFiniteError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "loss",
            r"step 2: the loss is not finite on rank 1 of 2; its update was not kept.*samples 8 to 15.*--start 8 ",
        ),
        ("norm", r"step 2: the gradient norm is inf, though the loss is finite on every rank; .*samples 8 to 15"),
        ("later", r"step 4: the loss is not finite on rank 1 of 2; .*samples 24 to 31.*--start 24 --count 8 --text"),
        ("weights", r"step 2: tensor weight.norm.weight not finite after its update on rank 1; it is not saved"),
        ("validation", r"step 2: the validation loss is not finite \(seen by rank 1 of 2\)"),
    ],
)
def test_all_ranks_stop_for_what_one_has_seen(ranks: RankPool, tmp_path, case: str, said: str) -> None:
    first, second = ranks.run(2, what_the_guard_says, Layout(1, 1, 2), str(tmp_path / "a run"), case)
    assert first == second
    assert re.search(said, first, re.DOTALL), first
    assert "There is no checkpoint yet" in first


def test_finite_numbers_stop_nobody(ranks: RankPool, tmp_path) -> None:
    assert ranks.run(2, nothing_to_say, str(tmp_path)) == [True, True]


def nothing_to_say(folder: str) -> bool:
    from megatrain.train.finite import FiniteGuard

    run = Run(Layout(3, 1, 2, "bf16"))
    guard = FiniteGuard(config_of(run.layout), RunDir(folder), run.mesh.control_group, run.engine.device)
    progress = Progress().after_step(8)
    guard.step(progress, torch.tensor(2.0), 1.0)
    guard.step(progress, torch.tensor(2.0), torch.tensor(1.0))
    guard.note(progress, torch.tensor(2.0), torch.tensor(1.0))
    guard.demand(progress)
    guard.evaluation(progress, {"validation_loss": 2.0}, {"loss": 4.0})
    guard.saving(progress, run.engine.not_finite())
    return True
