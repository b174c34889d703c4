"""Where a start begins: the seed, other weights, or a checkpoint with its place in the data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatrain.base.progress import Progress
from megatrain.config.resolved import ResolvedFinetune
from megatrain.train import start_position
from megatrain.train.checkpointing import Position, Start
from megatrain.train.start_position import restore
from tests.trained import make_config


@pytest.fixture
def restored(monkeypatch):
    """restored(position, config): what was done, in order."""

    def run(position: Position, config: Any, drawn: tuple[str, ...] = ()) -> list[Any]:
        calls: list[Any] = []
        note = calls.append
        monkeypatch.setattr(start_position, "initialize_weights", lambda *_, beat: note("seed"))
        monkeypatch.setattr(
            start_position, "read_manifest", lambda folder: SimpleNamespace(world_size=4, layout="ZeRO-2")
        )
        found = restore(
            config,
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(load_state_dict=lambda state: note(("loader", state)) or ["phase 2 is new"]),  # type: ignore[arg-type]
            SimpleNamespace(
                resume=lambda wanted: note(("resume", wanted)) or position, load_weights=lambda base: Start(base, drawn)
            ),  # type: ignore[arg-type]
            SimpleNamespace(line=note, resumed=lambda *_, **told: note(told)),  # type: ignore[arg-type]
            resume="auto",
            layout="ZeRO-1",
            beat=lambda activity: None,
        )
        assert found is position
        return calls

    return run


def test_a_new_run_draws_its_weights(restored) -> None:
    assert restored(Position(Progress(), None, None), make_config("tokenizer")) == [("resume", "auto"), "seed"]


def test_what_a_base_has_not_is_named(restored) -> None:
    config = ResolvedFinetune.model_construct(
        finetune=SimpleNamespace(base="base"), model=SimpleNamespace(num_labels=None)
    )
    position = Position(Progress(), None, None)
    assert restored(position, config) == [("resume", "auto"), "weights: from base"]
    assert restored(position, config, ("head.dense.weight", "head.bias")) == [
        ("resume", "auto"),
        "weights: from base",
        "weights: base has no head; drawn from run.seed: head.dense.weight, head.bias",
    ]


def test_a_checkpoint_gives_the_place_in_the_data_and_says_whence(restored) -> None:
    position = Position(Progress(10, 80), {"position": 80}, Path("step-00000010"))
    calls = restored(position, make_config("tokenizer"))
    assert calls == [
        ("resume", "auto"),
        ("loader", {"position": 80}),
        {"saved_ranks": 4, "saved_layout": "ZeRO-2", "layout": "ZeRO-1"},
        "phase 2 is new",
    ]
