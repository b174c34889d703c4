"""The loop alone: its parts are stand-ins that write down what they are asked for."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatrain.base.errors import NonFiniteError, Stopped
from megatrain.base.progress import Progress
from megatrain.data.loading.loader import StepBatches
from megatrain.tasks.base import LossSums
from megatrain.train.checkpointing import Position
from megatrain.train.loop import TrainingComponents, train
from tests.trained import make_config

BATCH = 8


class Parts:
    """What the loop is given; `calls` are in order."""

    def __init__(
        self, *, steps: int = 4, targets: int = 10, micro_batches: int = 2, stop_at: int | None = None
    ) -> None:
        self.calls: list[Any] = []
        self.reported: list[dict[str, float]] = []
        self.begun: list[int] = []  # micro-batches of each step
        self.targets, self.stop_at = targets, stop_at
        self.samples = 0
        self.bad_step: int | None = None
        self.validation: dict[str, list[int]] = {"": [1, 2]}
        self.config = make_config(
            "tokenizer",
            training={"steps": steps, "global_batch_size": BATCH, "micro_batch_size": 1},
            checkpoint={"interval_steps": 2},
            evaluation={"interval_steps": 3},
        )

    def components(self) -> TrainingComponents:
        note = self.calls.append
        report = SimpleNamespace(
            due=lambda step: step == 2,
            step=lambda progress, values, *, wait: self.reported.append(dict(values)),
            paused=nullcontext,
            evaluation=lambda step, values: note(("evaluation", step, dict(values))),
            nothing_to_do=lambda step, checkpoint: note(("nothing to do", step)),
            stopped=lambda step, reason, folder: note(("stopped", step, reason)),
            ended=lambda step, folder: note(("ended", step)),
        )
        guard = SimpleNamespace(
            step=self.guard_step,
            demand=lambda progress: note(("demand", progress.step)),
            evaluation=lambda progress, metrics, own: None,
            saving=lambda progress, names: None,
        )
        return TrainingComponents(  # type: ignore[arg-type]
            config=self.config,
            run=None,
            task=SimpleNamespace(
                evaluation_metrics=lambda sums: {"validation_loss": sums["loss"]}, before_step=lambda: None
            ),
            engine=SimpleNamespace(
                begin_step=self.begun.append,
                forward_backward=self.forward_backward,
                step=lambda rate: note(("update", rate)) or 1.5,
                not_finite=list,
                evaluate=lambda batch: {"loss": torch.tensor(float(batch), dtype=torch.float64)},
                mesh=SimpleNamespace(dp_cp_group=None),
            ),
            loader=SimpleNamespace(next=self.next, state_dict=lambda: {"position": self.samples}, wait_seconds=0.25),
            guard=guard,
            validation=self.validation,
            checkpointer=SimpleNamespace(
                save=lambda step, state, batches, best: note(("save", step, state["position"])) or f"step-{step}",
                retain=lambda: note("retain"),
            ),
            report=report,
            responders={},
            stop=SimpleNamespace(agreed=lambda step: "SIGTERM" if step == self.stop_at else None),
            watchdog=SimpleNamespace(beat=lambda *_: None, watched=lambda batches, what: batches),
        )

    def next(self) -> StepBatches[Any]:
        self.samples += BATCH
        return StepBatches((0, 1), self.targets)

    def forward_backward(self, batch: int, targets: int, at: Any) -> LossSums:
        self.calls.append(("forward", batch, targets))
        return LossSums(torch.tensor(3.0 + batch), {"masked": torch.tensor(1.0)})

    def guard_step(self, progress: Progress, loss: torch.Tensor, norm: float) -> None:
        if progress.step == self.bad_step:
            raise NonFiniteError("bad")

    def run(self, start: Progress | None = None) -> "Parts":
        train(self.components(), Position(start or Progress(), None, None))
        return self

    def those(self, kind: str) -> list[Any]:
        return [call for call in self.calls if call[0] == kind]


@pytest.fixture(autouse=True)
def alone(one_rank) -> None:
    """An evaluation sums over ranks."""


def test_a_step_is_every_micro_batch_and_an_update_after_each() -> None:
    parts = Parts(steps=1).run()
    order = [call[0] for call in parts.calls if call[0] in ("forward", "update")]
    assert order == ["forward", "update"] * 2
    assert [call[1:] for call in parts.those("forward")] == [(0, 10), (1, 10)]
    assert parts.begun == [2]


def test_sums_are_reported_per_target() -> None:
    parts = Parts(steps=2).run()
    for values in parts.reported:
        assert (values["loss"], values["masked"], values["grad_norm"]) == (pytest.approx(0.7), pytest.approx(0.2), 1.5)
    assert [values["learning_rate"] for values in parts.reported] == [call[1] for call in parts.those("update")[::2]]


def test_a_batch_without_targets_divides_by_none() -> None:
    assert {call[2] for call in Parts(steps=1, targets=0).run().those("forward")} == {1}


def test_each_named_set_is_reported_by_itself() -> None:
    parts = Parts(steps=3)
    parts.validation = {"web": [1, 2], "code": [7]}
    found = [call[1:] for call in parts.run().those("evaluation")]
    assert found == [(3, {"web/validation_loss": 3.0}), (3, {"code/validation_loss": 7.0})]


def test_evaluations_and_saves_come_when_due_and_at_the_end() -> None:
    parts = Parts(steps=5).run()
    assert [call[1] for call in parts.those("evaluation")] == [3, 5]
    assert parts.those("evaluation")[0][2] == {"validation_loss": 3.0}
    assert parts.those("save") == [("save", 2, 16), ("save", 4, 32), ("save", 5, 40)]
    assert parts.calls[-1] == ("ended", 5)


def test_a_signal_stops_after_saving() -> None:
    parts = Parts(steps=5, stop_at=1)
    with pytest.raises(Stopped, match="SIGTERM"):
        parts.run()
    assert (parts.those("save"), parts.calls[-1]) == ([("save", 1, 8)], ("stopped", 1, "SIGTERM"))


def test_a_signal_at_the_last_step_is_the_end() -> None:
    assert Parts(steps=2, stop_at=2).run().calls[-1] == ("ended", 2)


def test_what_is_not_finite_is_neither_reported_nor_saved() -> None:
    parts = Parts(steps=5)
    parts.bad_step = 2
    with pytest.raises(NonFiniteError):
        parts.run()
    assert (len(parts.reported), parts.those("save")) == (1, [])


def test_older_checkpoints_go_when_a_report_has_found_finite_steps() -> None:
    parts = Parts(steps=2).run()
    at = parts.calls.index("retain")
    assert parts.calls[at - 1] == ("demand", 2)


def test_a_resumed_run_goes_on_to_the_end_and_one_at_its_end_does_nothing() -> None:
    parts = Parts(steps=5)
    parts.samples = 3 * BATCH
    assert [call[1] for call in parts.run(Progress(3, 3 * BATCH)).those("save")] == [4, 5]
    assert Parts(steps=5).run(Progress(5, 5 * BATCH)).calls == [("nothing to do", 5)]
