"""What a start that resumes changes of a run is said, before anything of it is changed."""

import pytest

from launcher.planning.plan import make_plan, resolve
from launcher.preflight.changes import check_changes
from launcher.runs.prepare import prepare_run
from tests.launcher.conftest import saved


@pytest.fixture
def found(tiny, here):
    """The findings about a change of the small run after 10 of 20 steps: (level, text) each."""

    def of(*overrides, before=(), step=10, resume="auto", **progress):
        run = prepare_run(tiny(*before), make_plan(tiny(*before)).chosen)
        if step:
            saved(run, step, **progress)
        config = tiny(*before, *overrides)
        resolved = resolve(config, make_plan(config).chosen)
        return [(finding.level, finding.text) for finding in check_changes(resolved, run, resume)]

    return of


def test_nothing_is_said_of_what_is_as_it_was(found) -> None:
    assert found() == []


@pytest.mark.parametrize(
    "change", ["parallel.zero_stage=3", "cluster.gpus_per_node=4", "slurm.time=5", "data.prefetch=4"]
)
def test_nor_of_how_the_same_is_computed(found, change) -> None:
    assert found(change) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.betas=[0.8,0.9]", "optimizer.betas: [0.8, 0.9], was [0.9, 0.95]"),
        ("optimizer.weight_decay=0.2", "optimizer.weight_decay: 0.2, was 0.1"),
        ("data.max_epochs=30", "data.max_epochs: 30.0, was 16.0"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last: 1, was 3"),
        ("training.global_batch_size=16", "training.global_batch_size: 16, was 8"),
    ],
)
def test_a_line_for_each_field(found, change, said) -> None:
    assert found(change)[0] == ("note", said)


def test_before_the_first_checkpoint_there_is_nothing_to_change(found) -> None:
    assert found("optimizer.weight_decay=0.2", step=0) == []


@pytest.mark.parametrize("change", ["training.steps=200", "optimizer.learning_rate=1e-2", "schedule.name=constant"])
def test_a_learning_rate_that_jumps_is_warned_of(found, change) -> None:
    level, text = found(change)[-1]
    assert level == "warning"
    assert text.startswith("learning rate of step 11: ")
    assert "was 2.9e-4" in text
    assert "jumps upwards" in text


def test_one_that_falls_is_noted(found) -> None:
    level, text = found("optimizer.learning_rate=1e-5")[-1]
    assert (level, text) == ("note", "learning rate of step 11: 4.8e-6, was 2.9e-4 before these changes")


TOKENS = ("training.steps=null", f"training.tokens={20 * 8 * 128}")


@pytest.mark.parametrize("size", [4, 16])
def test_another_batch_size_makes_no_rate_jump(found, size) -> None:
    """It is a function of the tokens."""
    change = f"training.global_batch_size={size}"
    assert [level for level, _ in found(change, before=TOKENS)] == ["note", "note"]


def test_a_warmup_longer_than_a_run_given_in_tokens(found) -> None:
    (one,) = found("schedule.warmup_steps=50", before=TOKENS, step=0)
    rule = "is longer than the run (training.tokens come to 20 steps). Try 1."
    assert one == ("error", f"schedule.warmup_steps: 50: {rule}")
    assert found("schedule.warmup_steps=20", before=TOKENS, step=0) == []


def test_one_that_is_over_may_be_of_any_length(found) -> None:
    """With a batch of 64 the whole run would have had three steps."""
    change = ("training.global_batch_size=64", "cluster.gpus_per_node=2")
    before = (*TOKENS, "schedule.warmup_steps=8")
    assert "error" not in [level for level, _ in found(*change, before=before)]


def test_resume_from_an_older_checkpoint_is_compared_there(found, tiny) -> None:
    assert found("optimizer.learning_rate=1e-5", step=5, resume="5")[-1][1].startswith("learning rate of step 6: ")
