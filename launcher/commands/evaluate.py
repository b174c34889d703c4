"""`megatrain evaluate`."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.options import Json, RunOrCheckpoint, existing
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say


def evaluate(
    path: RunOrCheckpoint,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="examples; of pretraining, prepared folders")
    ] = None,
    split: Annotated[str, typer.Option(help="of the run's own data", metavar="validation|train|NAME")] = "validation",
    report: Annotated[
        Path | None, typer.Option(help="a new folder for report.md and report.html", metavar="FOLDER")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint by the metrics of its run's task, in one process.

    Without files it is what the run's loop reported for the checkpoint; of files all examples are read. --split takes
    the name of a validation set as well; without it, all of them are measured.

    Example: megatrain evaluate runs/reviews held-out.jsonl --report reports/reviews
    """
    from megatrain.evaluation.checkpoint import evaluate as measure
    from megatrain.evaluation.report import as_dict, as_text, write_report

    existing(path)
    if files and split != "validation":
        raise ConfigError(f"--split {split}: is of the run's own data, and files are given. Leave one of them out")
    if report is not None and report.exists():
        raise ConfigError(f"--report {report}: is there already. Name a new folder")
    found = measure(path, files or (), split=split, warn=partial(complain, kind="warning"))
    if report is not None:
        write_report(found, report)
    say(json.dumps(as_dict(found), indent=2) if as_json else as_text(found))
