"""Layer-wise learning rates: the update of each layer, and the same run under every layout, resumed or not."""

from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.optim.layers import lr_scale
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported
from tests.distributed.test_problems import LAYOUTS, TASKS, here  # noqa: F401 - a fixture

pytestmark = pytest.mark.distributed

RATE, DECAY = 3e-3, 0.5
COMMON = (
    *TASKS["number"],
    "finetune.train=[number-reviews.jsonl]",
    "finetune.validation=[]",
    f"optimizer.layer_decay={DECAY}",
    f"optimizer.learning_rate={RATE}",
    "optimizer.weight_decay=0.0",
    "checkpoint={interval_steps: 1, keep_last: 9}",
)


@pytest.mark.parametrize(
    "layouts",
    [
        ("", "tp2-sp"),
        pytest.param(("zero3-dp2", "zero2-tp2"), marks=pytest.mark.full),
        pytest.param(("zero0-dp2", "cp2"), marks=pytest.mark.full),
    ],
)
def test_each_layer_moves_at_its_own_rate(ranks: RankPool, here: Path, layouts) -> None:  # noqa: F811
    """AdamW's second moment makes of a first gradient its sign: what moves, moves by the rate. The second layout goes
    on from the first."""
    run = RunDir(here / "runs" / "decay-plain")
    if not run.steps():
        run = start(ranks, config_of("decay-plain", base_of(here, "bert")), *COMMON, "training.steps=4")
    plain, text = reported(run), config_of(f"decay{'-'.join(layouts)}", base_of(here, "bert"))
    for steps, layout in zip((2, 4), layouts, strict=True):
        run = start(ranks, text, *COMMON, f"training.steps={steps}", *LAYOUTS.get(layout, ()))
    found = reported(run)
    for step in range(1, 5):
        assert found[step]["loss"] == pytest.approx(plain[step]["loss"], rel=2e-6)
        assert found[step]["grad_norm"] == pytest.approx(plain[step]["grad_norm"], rel=2e-5)
    section = load_run(run).model
    first, second = (read_tensors(run.step(step), kind="weight") for step in (2, 3))
    moved = {name: float((second[name] - tensor).abs().max()) for name, tensor in first.items()}
    by_scale: dict[float, float] = {}
    for name, distance in moved.items():
        scale = lr_scale(section, name, DECAY)
        by_scale[scale] = max(by_scale.get(scale, 0.0), distance)
    assert sorted(by_scale) == [0.25, 0.5, 1.0]
    for scale, distance in by_scale.items():
        assert 0.5 * RATE * scale < distance < 1.5 * RATE * scale, scale
    assert torch.isfinite(torch.tensor(list(moved.values()))).all()
