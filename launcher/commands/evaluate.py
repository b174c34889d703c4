"""`megatrain evaluate`."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
    together: Annotated[
        list[Path] | None,
        typer.Option("--with", help="another classifier, whose probabilities are averaged with it", metavar="RUN"),
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, max=1024, help="ranks that share the work out, on this machine")] = 1,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="of them, so many share a copy of the model")] = 1,
    context_parallel: Annotated[int, typer.Option(min=1, help="of them, so many share a sequence")] = 1,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint by the metrics of its run's task.

    Without files it is what the run's loop reported for the checkpoint; of files all examples are read. --split takes
    the name of a validation set as well; without it, all of them are measured.

    Example: megatrain evaluate runs/reviews held-out.jsonl --report reports/reviews

    Example: megatrain evaluate runs/llama-8b --nproc 8 --tensor-parallel 4
    """
    from megatrain.evaluation.checkpoint import evaluate as measure
    from megatrain.evaluation.report import as_dict, as_text, write_report

    for one in (path, *(together or ())):
        existing(one)
    if files and split != "validation":
        raise ConfigError(f"--split {split}: is of the run's own data, and files are given. Leave one of them out")
    if report is not None and report.exists():
        raise ConfigError(f"--report {report}: is there already. Name a new folder")
    if nproc * tensor_parallel * context_parallel > 1:
        layout = {
            "tensor_parallel": tensor_parallel,
            "context_parallel": context_parallel,
            "report": report and str(report),
        }
        request = {"path": str(path), "files": files or [], "split": split, "as_json": as_json, **layout}
        _on_ranks(request | {"others": [str(one) for one in together or ()]}, nproc)
        return
    found = measure(path, files or (), split=split, others=together or (), warn=partial(complain, kind="warning"))
    if report is not None:
        write_report(found, report)
    say(json.dumps(as_dict(found), indent=2) if as_json else as_text(found))


def _on_ranks(fields: dict[str, Any], nproc: int) -> None:
    """Raises typer.Exit with the exit code of the ranks."""
    from launcher.launch.local import run_ranks
    from megatrain.evaluation.on_ranks import REQUEST, Request, check_request
    from megatrain.hardware.device import device_type
    from megatrain.run.directory import RunDir

    request = Request.model_validate(fields)
    check_request(request, nproc)
    with tempfile.TemporaryDirectory(prefix="megatrain-evaluate-") as folder:
        (Path(folder) / REQUEST).write_text(request.model_dump_json(), encoding="utf-8")
        code = run_ranks(RunDir(folder), nproc, module="megatrain.evaluation.on_ranks", device=device_type())
    if code:
        raise typer.Exit(code)
