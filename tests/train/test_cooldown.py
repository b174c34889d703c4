"""A cooldown from a checkpoint of a run that goes on: the real command, one process."""

import hashlib
import math
from pathlib import Path

import pytest

from megatrain.checkpoint.manifest import verify
from megatrain.config.file import load_own_config
from megatrain.run.directory import RunDir
from tests.project import make_project, megatrain, metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

PEAK = 1e-3
STEP_TOKENS = 8 * 128
STABLE, BRANCH, COOLED = 20, 8, 6  # steps of the long run, of its checkpoint, of the cooldown
COMMON = (
    *("training.steps=null", "cluster.gpus_per_node=1", f"optimizer.learning_rate={PEAK}", "checkpoint.keep_last=9"),
    *("schedule.name=wsd", "schedule.warmup_steps=2", "schedule.min_lr_ratio=0.1"),
)
COOLDOWN = ("--cooldown-tokens", str(COOLED * STEP_TOKENS), "--cooldown-min-lr-ratio", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("project"))
    train(folder, "long", f"training.tokens={STABLE * STEP_TOKENS}")
    return folder


def train(folder: Path, name: str, *arguments: str, exit_code: int = 0) -> str:
    return megatrain(folder, "train", "run.yaml", f"run.name={name}", *COMMON, *arguments, exit_code=exit_code)


def cool_down(folder: Path, name: str, *arguments: str, source: str = f"runs/long@{BRANCH}", exit_code: int = 0) -> str:
    length = f"training.tokens={STABLE * STEP_TOKENS}"  # the file says how long the other run is
    options = ("--cooldown-from", source, *COOLDOWN)
    return train(folder, name, length, *options, *arguments, exit_code=exit_code)


def rows(folder: Path, name: str) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in metrics(RunDir(folder / "runs" / name)) if "loss" in row}


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_cooldown_is_the_end_of_a_run_that_was_planned_so(folder: Path) -> None:
    before = content(folder / "runs/long")
    said = cool_down(folder, "cooled")
    assert f"resume: step {BRANCH} from checkpoints/step-{BRANCH:08d}" in said
    assert content(folder / "runs/long") == before, "the other run is left as it is"

    end = BRANCH + COOLED
    train(folder, "planned", f"training.tokens={end * STEP_TOKENS}", f"schedule.decay_fraction={COOLED / (end - 2)}")
    long, cooled, planned = (rows(folder, name) for name in ("long", "cooled", "planned"))
    assert list(cooled) == list(range(BRANCH + 1, end + 1))
    for step, row in cooled.items():
        for name in ("loss", "grad_norm", "learning_rate", "tokens"):
            assert row[name] == planned[step][name], f"{name} of step {step}"
    assert cooled[BRANCH + 1]["loss"] == long[BRANCH + 1]["loss"], "no update has had another rate yet"
    assert cooled[BRANCH + 2]["loss"] != long[BRANCH + 2]["loss"]
    assert long[BRANCH]["learning_rate"] == PEAK
    part = 1 - math.sqrt(1 / COOLED)
    assert cooled[BRANCH + 1]["learning_rate"] == pytest.approx(PEAK * (0.1 + 0.9 * part))
    assert cooled[end]["learning_rate"] == pytest.approx(0.1 * PEAK)

    run = RunDir(folder / "runs/cooled")
    assert verify(run.step(BRANCH)) == []
    config = load_own_config(run.config)
    assert config.run.branch.model_dump() == {
        "checkpoint": f"runs/long/checkpoints/step-{BRANCH:08d}", "step": BRANCH, "samples": BRANCH * 8
    }  # fmt: skip
    assert (config.schedule.name, config.schedule.start_lr_ratio) == ("cooldown", 1.0)


@pytest.mark.full
def test_it_resumes_exactly_and_needs_the_other_run_no_more(folder: Path) -> None:
    cool_down(folder, "twice", "checkpoint.interval_steps=2")
    once = rows(folder, "twice")
    (folder / "runs/long").rename(folder / "runs/away")
    try:
        cool_down(folder, "twice", "checkpoint.interval_steps=2", "--resume", str(BRANCH + 2))
    finally:
        (folder / "runs/away").rename(folder / "runs/long")
    again = rows(folder, "twice")
    assert again.keys() == once.keys()
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [row[name] for row in again.values()] == [row[name] for row in once.values()]
    said = train(folder, "twice", f"training.tokens={STABLE * STEP_TOKENS}", exit_code=2)
    assert "run.branch" in said, "without its options it would be another run"


@pytest.mark.full
def test_it_may_read_another_mixture_from_there_on(folder: Path) -> None:
    phase = f"data.phases=[{{from_sample: {BRANCH * 8}, sequence_length: 64}}]"
    assert "data: phase 1 (from sample 64) is new; it had not begun at sample 64" in cool_down(folder, "mixed", phase)
    earlier = phase.replace(f"from_sample: {BRANCH * 8}", "from_sample: 8")
    assert "had begun at sample 64" in cool_down(folder, "early", earlier, exit_code=4)
