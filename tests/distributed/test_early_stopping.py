"""A run that gets no better ends, keeps its best checkpoint, is complete, and counts on after a resume."""

from pathlib import Path

import pytest

from megatrain.checkpoint.progress import is_complete
from megatrain.checkpoint.state import read_counts
from megatrain.run.inputs import load_run
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported
from tests.distributed.test_problems import LAYOUTS, TASKS, here  # noqa: F401 - a fixture

pytestmark = pytest.mark.distributed

STILL = (
    *TASKS["number"],
    "finetune.train=[number-reviews.jsonl]",
    "finetune.validation=[number-held-out.jsonl]",
    "training.early_stopping={metric: mae, patience: 3}",
    "optimizer.learning_rate=1e-30",
    "evaluation.interval_steps=1",
    "checkpoint={interval_steps: 2, keep_last: 1}",
)


@pytest.mark.parametrize("layout", ["", pytest.param("zero3-dp2", marks=pytest.mark.full)])
def test_it_ends_where_it_gets_no_better(ranks: RankPool, here: Path, layout) -> None:  # noqa: F811
    text = config_of(f"early{layout}", base_of(here, "llama"))
    run = start(ranks, text, *STILL, *LAYOUTS.get(layout, ()), "training.steps=3")
    assert run.steps() == [1, 3], "the best, and the newest"
    best = read_counts(run.step(3)).early_stopping
    assert best is not None
    assert (best.metric, best.step, best.since) == ("mae", 1, 2)
    assert best.value == reported(run)[1]["mae"]
    run = start(ranks, text, *STILL, "training.steps=50")
    assert max(reported(run)) == 4
    assert run.steps() == [1, 4]
    assert is_complete(run, load_run(run))
    if not layout:
        return
    again = start(ranks, text, *STILL, "training.steps=50")
    assert (max(reported(again)), again.steps()) == (4, [1, 4]), "there is nothing to do"
    patient = [one.replace("patience: 3", "patience: 4") for one in STILL]
    assert max(reported(start(ranks, text, *patient, "training.steps=50"))) == 5
