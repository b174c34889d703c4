"""When a run ends early, and what it says of its best checkpoint."""

import pytest

from megatrain.base.errors import ConfigError
from megatrain.base.progress import Progress
from megatrain.checkpoint.best import Best, is_over
from megatrain.config.early_stopping import EarlyStoppingSection
from megatrain.run.directory import RunDir
from megatrain.tasks import loss_metrics  # noqa: F401 - registers validation_loss
from megatrain.train.checkpointing import Position
from megatrain.train.early_stopping import EarlyStopping
from megatrain.train.loop import train
from tests.train.test_loop import Parts


def looked(
    section: EarlyStoppingSection, values: list[float], best: Best | None = None
) -> tuple[EarlyStopping, list[bool]]:
    early = EarlyStopping(section, None, best)
    return early, [early.look(step, {section.metric: value}) for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("metric", "mode", "values", "new"),
    [
        ("validation_loss", "auto", [3.0, 2.0, 2.0, 2.5], [True, True, False, False]),
        ("accuracy", "auto", [0.5, 0.4, 0.6, 0.6], [True, False, True, False]),
        ("mae", "auto", [1.0, 0.5], [True, True]),
        ("accuracy", "min", [0.5, 0.4], [True, True]),
    ],
)
def test_what_is_better(one_rank, metric, mode, values, new) -> None:
    assert looked(EarlyStoppingSection(metric=metric, mode=mode), values)[1] == new


def test_it_ends_after_so_many_without_a_new_best(one_rank) -> None:
    section = EarlyStoppingSection(metric="accuracy", patience=2, min_delta=0.1)
    early, _ = looked(section, [0.5, 0.59, 0.7])
    assert (early.best, early.is_over) == (Best(metric="accuracy", value=0.7, step=3), False)
    early, _ = looked(section, [0.5, 0.59, 0.6])
    assert early.is_over
    assert early.best == Best(metric="accuracy", value=0.5, step=1, since=2)
    again, _ = looked(section, [0.55], Best(metric="accuracy", value=0.5, step=1, since=1))
    assert again.is_over, "a resumed run counts on"
    assert not is_over(section.model_copy(update={"patience": 3}), early.best), "more patience lets it go on"
    assert EarlyStopping(EarlyStoppingSection(metric="macro_f1"), None, early.best).best is None


def test_a_metric_that_is_not_measured(one_rank) -> None:
    with pytest.raises(ConfigError, match=r"early_stopping.metric: 'f9': is not measured .* there are: loss, f1"):
        EarlyStopping(EarlyStoppingSection(metric="f9")).look(1, {"loss": 1.0, "f1": 2.0})
    assert not EarlyStopping().look(1, {})


def test_the_loop_saves_what_is_best_and_ends(one_rank, tmp_path) -> None:
    """Evaluations at 3, 6 and 9; checkpoints at even steps; the third evaluation in a row that is no better ends it."""
    parts = Parts(steps=100, stop_at=None)
    section = EarlyStoppingSection(patience=2)
    components = parts.components()
    object.__setattr__(components, "early_stopping", EarlyStopping(section))
    object.__setattr__(components, "run", RunDir(tmp_path))
    lines: list[str] = []
    components.report.line = lines.append  # type: ignore[method-assign]
    train(components, Position(Progress(), None, None))
    assert [call[1] for call in parts.those("save")] == [2, 3, 4, 6, 8, 9]
    assert parts.those("ended") == [("ended", 9)]
    assert lines[0] == "early stopping: validation_loss was no better in 2 evaluations after step 3"
    assert lines[1].startswith(f"best checkpoint: {tmp_path}/checkpoints/step-00000003 (validation_loss 3)")
    again = Parts(steps=100).components()
    object.__setattr__(again, "early_stopping", EarlyStopping(section, None, components.early_stopping.best))
    object.__setattr__(again, "run", RunDir(tmp_path))
    again.report.line = lines.append  # type: ignore[method-assign]
    train(again, Position(Progress(step=9, samples=72), None, None))
    assert lines[2:] == lines[:2], "there is nothing to do"
