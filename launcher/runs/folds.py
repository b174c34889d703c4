"""k-fold cross-validation: the rows of finetune.train in k parts, and a run for each: validated on its part, trained on
the rest.

RUN-folds/          beside the folders of the runs, which are RUN-fold-1, RUN-fold-2, …
    1/train.jsonl   rows of the other folds
    1/validation.jsonl
    summary.json    metrics of each run's last evaluation, their means and standard deviations
"""

import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launcher.planning.resolve import run_folder
from megatrain.base.errors import ConfigError, DataError
from megatrain.base.files import write_atomically, write_json
from megatrain.config import FinetuneConfig
from megatrain.data.examples.example_rows import field_of
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.rows import read_rows
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir

MOST = 100
_COUNTS = ("validation_examples", "validation_targets", "validation_words")


class Summary(NamedTuple):
    """Of one metric."""

    mean: float
    deviation: float  # of a sample: over k − 1
    values: list[float]  # of the folds


def fold_configs(config: FinetuneConfig, count: int, by: str | None = None) -> list[FinetuneConfig]:
    """Write the rows of each fold, and give the configuration of its run. The same rows give the same folds.

    Args:
        by: a field: rows that have the same stand in one fold, as questions about one text should. Rows that are equal
            always do.

    Raises:
        ConfigError: there is a validation, or the count is none.
        DataError: a file cannot be read, a row lacks the field, or there are fewer rows than folds.
    """
    if config.finetune.validation:
        raise ConfigError(
            f"--folds {count}: finetune.validation: each fold of finetune.train is one run's validation. Leave it empty"
        )
    if not 2 <= count <= MOST:
        raise ConfigError(f"--folds {count}: must be from 2 to {MOST}")
    folds = split(_rows(config), count, seed=config.run.seed, label=_label_field(config), by=by)
    folder = _folder(config)
    found = []
    for number in range(1, count + 1):
        own = folder / str(number)
        own.mkdir(parents=True, exist_ok=True)
        others = [line for other, lines in enumerate(folds, start=1) if other != number for line in lines]
        for name, lines in (("train", others), ("validation", folds[number - 1])):
            write_atomically(own / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        files = {"train": (str(own / "train.jsonl"),), "validation": (str(own / "validation.jsonl"),)}
        run = config.run.model_copy(update={"name": f"{config.run.name}-fold-{number}"})
        found.append(config.model_copy(update={"run": run, "finetune": config.finetune.model_copy(update=files)}))
    return found


def split(
    rows: Iterator[dict[str, Any]], count: int, *, seed: int, label: str | None = None, by: str | None = None
) -> list[list[str]]:
    """Rows as lines of JSON, in `count` parts of as many groups, give or take one, each with its share of every label.

    Raises:
        DataError: there are fewer groups than parts, or a row has no such field.
    """
    groups: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        line = json.dumps(row, ensure_ascii=False, default=str)
        if by is not None and field_of(row, by) is None:
            raise DataError(f"--fold-by {by}: row {number:,} of finetune.train has no such field")
        group = line if by is None else json.dumps(field_of(row, by), sort_keys=True, default=str)
        groups.setdefault(group, []).append(line)
        labels.setdefault(group, str(field_of(row, label)) if label is not None else "")
    if len(groups) < count:
        what = f"different {by}" if by is not None else "different rows"
        raise DataError(f"--folds {count}: finetune.train has {len(groups):,} {what}: take as many folds at most")
    drawn = {group: hashlib.sha256(f"{seed} {group}".encode()).digest() for group in groups}
    ordered = sorted(groups, key=lambda group: (labels[group], drawn[group]))
    parts: list[list[str]] = [[] for _ in range(count)]
    for place, group in enumerate(ordered):
        parts[place % count] += groups[group]
    return parts


def summarize(config: FinetuneConfig, runs: Sequence[RunDir]) -> dict[str, Summary]:
    """Metrics of the last evaluation of each run, also written to summary.json.

    Raises:
        DataError: a run has no evaluation.
    """
    each = [_last_evaluation(run) for run in runs]
    found = {}
    for name in each[0]:
        values = [one[name] for one in each if name in one]
        if len(values) == len(each) and name not in _COUNTS:
            found[name] = Summary(statistics.fmean(values), statistics.stdev(values), values)
    said = {name: summary._asdict() for name, summary in found.items()}
    write_json(_folder(config) / "summary.json", {"runs": [str(run) for run in runs], "metrics": said})
    return found


def _last_evaluation(run: RunDir) -> dict[str, float]:
    rows = [row for row in read_metrics(run.metrics) if "validation_loss" in row]
    if not rows:
        raise DataError(f"{run}: has no evaluation in its metrics.jsonl")
    return {name: value for name, value in rows[-1].items() if name != "step" and isinstance(value, int | float)}


def _rows(config: FinetuneConfig) -> Iterator[dict[str, Any]]:
    for file in find_inputs(config.finetune.train).inputs:
        for row in read_rows(file):
            yield row.fields


def _label_field(config: FinetuneConfig) -> str | None:
    field = getattr(config.task, "label_field", None)
    return field if getattr(config.task, "problem", "single_label") == "single_label" else None


def _folder(config: FinetuneConfig) -> Path:
    run = run_folder(config).path
    return run.with_name(f"{run.name}-folds")
