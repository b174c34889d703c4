"""Folds share rows out without a leak, and their runs are summed up."""

import json
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from launcher.runs.folds import fold_configs, split, summarize
from megatrain.base.errors import ConfigError, DataError
from megatrain.config import FinetuneConfig
from megatrain.run.directory import RunDir
from tests.project import megatrain, metrics

ROWS = [{"text": f"text {number}", "label": "rare" if number % 10 == 0 else "usual"} for number in range(100)]


def test_each_row_is_in_one_fold() -> None:
    parts = split(iter(ROWS), 5, seed=1)
    assert [len(part) for part in parts] == [20] * 5
    assert sorted(line for part in parts for line in part) == sorted(json.dumps(row) for row in ROWS)
    assert split(iter(ROWS), 5, seed=1) == parts
    assert split(iter(reversed(ROWS)), 5, seed=1) == parts, "whatever the order of the files"
    assert split(iter(ROWS), 5, seed=2) != parts


def test_each_fold_has_its_share_of_every_label() -> None:
    for part in split(iter(ROWS), 5, seed=1, label="label"):
        assert Counter(json.loads(line)["label"] for line in part) == {"rare": 2, "usual": 18}


def test_what_is_equal_stays_together() -> None:
    parts = split(iter([*ROWS, *ROWS[:30]]), 4, seed=1)
    assert sum(map(len, parts)) == 130
    assert all(not set(one) & set(other) for one in parts for other in parts if one is not other)
    about = [{"question": str(number), "context": {"id": number % 7}} for number in range(40)]
    parts = split(iter(about), 3, seed=1, by="context.id")
    contexts = [{json.loads(line)["context"]["id"] for line in part} for part in parts]
    assert sorted(number for one in contexts for number in one) == list(range(7))


def test_too_few_rows_and_no_field() -> None:
    with pytest.raises(DataError, match=r"--folds 5: finetune\.train has 1 different rows"):
        split(iter(ROWS[:1] * 9), 5, seed=1)
    with pytest.raises(DataError, match=r"--fold-by topic: row 1 of finetune\.train has no such field"):
        split(iter(ROWS), 5, seed=1, by="topic")


def config_in(folder, **finetune) -> FinetuneConfig:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "run": {"name": "reviews", "directory": str(folder / "runs")},
        "finetune": {"base": "base", "train": [str(folder / "rows.jsonl")], **finetune},
        "task": {"name": "sequence_classification"},
        "training": {"steps": 2, "global_batch_size": 2},
    }
    return FinetuneConfig.model_validate(values)


def test_the_runs_and_their_files(tmp_path) -> None:
    configs = fold_configs(config_in(tmp_path), 4)
    assert [one.run.name for one in configs] == [f"reviews-fold-{number}" for number in (1, 2, 3, 4)]
    seen = []
    for one in configs:
        (train,), (held_out,) = one.finetune.train, one.finetune.validation
        lines = {path: Path(path).read_text().splitlines() for path in (train, held_out)}
        assert len(lines[train]) == 75
        assert not set(lines[train]) & set(lines[held_out])
        seen += lines[held_out]
    assert len(set(seen)) == 100
    with pytest.raises(
        ConfigError, match=r"finetune\.validation: each fold of finetune\.train is one run's validation"
    ):
        fold_configs(config_in(tmp_path, validation=["x"]), 4)
    with pytest.raises(ConfigError, match="--folds 1: must be from 2 to 100"):
        fold_configs(config_in(tmp_path), 1)


def test_the_summary_is_of_the_last_evaluations(tmp_path) -> None:
    config = config_in(tmp_path)
    runs = [RunDir(tmp_path / "runs" / f"reviews-fold-{number}") for number in (1, 2, 3)]
    for number, run in enumerate(runs):
        run.path.mkdir(parents=True)
        rows = [
            {"step": 1, "validation_loss": 9.0, "accuracy": 0.1},
            {"step": 2, "validation_loss": 1.0 + number, "accuracy": 0.5, "validation_examples": 7},
            {"step": 2, "loss": 3.0},
        ]
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "runs/reviews-folds").mkdir()
    found = summarize(config, runs)
    assert found["validation_loss"] == (2.0, 1.0, [1.0, 2.0, 3.0])
    assert found["accuracy"].deviation == 0.0
    assert found.keys() == {"validation_loss", "accuracy"}
    assert json.loads((tmp_path / "runs/reviews-folds/summary.json").read_text())["metrics"]["accuracy"]["mean"] == 0.5


@pytest.mark.full
def test_the_command(tmp_path) -> None:
    from tests.distributed.classifiers import config_of, make_base, write_reviews
    from tests.distributed.runs import make_project

    make_project(tmp_path)
    make_base(tmp_path / "base", "llama", tmp_path / "tokenizer")
    write_reviews(tmp_path / "reviews.jsonl", 60, seed=1)
    text = config_of("crossed", "base").replace("validation: [held-out.jsonl], ", "")
    (tmp_path / "run.yaml").write_text(text)
    said = megatrain(tmp_path, "finetune", "run.yaml", "--folds", "2", "--nproc", "1")
    values = [metrics(RunDir(tmp_path / f"runs/crossed-fold-{number}"))[-1] for number in (1, 2)]
    summary = json.loads((tmp_path / "runs/crossed-folds/summary.json").read_text())["metrics"]["validation_loss"]
    losses = [value["validation_loss"] for value in values]
    assert summary["values"] == losses
    assert re.search(rf"validation_loss +{statistics.fmean(losses):.4f} ± ", said)
