"""`megatrain finetune`."""

from typing import Annotated

import typer

from launcher.commands.options import DryRun, File, HostFile, Hosts, Json, Overrides, Ranks, Resume


def finetune(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    folds: Annotated[
        int | None,
        typer.Option(help="cross-validation: so many runs, each validated on another part of finetune.train"),
    ] = None,
    fold_by: Annotated[
        str | None, typer.Option(help="rows that have the same here stand in one fold", metavar="FIELD")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on this machine, from a run or a model in Hugging Face's format.

    Example: megatrain finetune configs/quickstart-finetune.yaml finetune.base=runs/llama-125m --nproc 8

    Example: megatrain finetune configs/sequence-classification.yaml --folds 5
    """
    from launcher.commands.folds import run_folds
    from launcher.commands.start_run import start_run
    from launcher.launch.start import LaunchTarget
    from megatrain.base.errors import ConfigError

    target = LaunchTarget.from_options(nproc, hosts, hostfile)
    if folds is not None:
        if dry_run or as_json:
            raise ConfigError("--folds: writes the folds' rows and starts runs. Leave --dry-run and --json out")
        run_folds(file, overrides, target, count=folds, by=fold_by, resume=resume)
        return
    if fold_by is not None:
        raise ConfigError(f"--fold-by {fold_by}: is of --folds")
    start_run(file, overrides, target, verb="finetune", resume=resume, dry_run=dry_run, as_json=as_json)
