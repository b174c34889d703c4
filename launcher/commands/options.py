"""Arguments and options that several verbs take, and what they are checked with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatrain.base.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from megatrain.config import Config
    from megatrain.run.directory import RunDir

File = Annotated[Path, typer.Argument(help="the run, as YAML", metavar="FILE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="fields to set, over the file", metavar="[KEY=VALUE]...")]
Run = Annotated[Path, typer.Argument(help="a run's folder", metavar="RUN")]
RunOrCheckpoint = Annotated[Path, typer.Argument(help="a run, or one checkpoint", metavar="RUN_OR_CHECKPOINT")]
Json = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]

Ranks = Annotated[int | None, typer.Option("--nproc", min=1, max=1024, help="ranks to start; default: the cluster's")]
Resume = Annotated[str, typer.Option(help="auto, must, never, or a checkpoint's step", metavar="auto|must|never|STEP")]
Hosts = Annotated[str | None, typer.Option(help="start by ssh, one launcher per host", metavar="HOST[:RANKS],…")]
HostFile = Annotated[Path | None, typer.Option(help="the same as a DeepSpeed hostfile: HOST slots=RANKS per line")]
CooldownFrom = Annotated[
    str | None,
    typer.Option(help="go on from another run's checkpoint and decay its rate", metavar="RUN[@STEP]|CHECKPOINT"),
]
CooldownTokens = Annotated[str | None, typer.Option(help="over so many tokens: whole steps", metavar="TOKENS")]
CooldownDecay = Annotated[str, typer.Option(help="along 1 - √, a line or half a cosine", metavar="sqrt|linear|cosine")]
CooldownMinimum = Annotated[float, typer.Option("--cooldown-min-lr-ratio", min=0, max=1, help="to so much of the peak")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="plan and check, start nothing, write nothing")]
Chain = Annotated[int, typer.Option(min=1, help="jobs, each starting when the one before has ended")]

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT…",
        help="files, folders, quoted glob patterns, or hub:NAME[@REVISION][?subset=SUBSET&split=SPLIT]",
    ),
]
TextField = Annotated[str, typer.Option(help="the field of a jsonl line or table row that holds the text")]


def load(file: Path, overrides: list[str] | None) -> "Config":
    """The configuration in a file, with fields set over it. Raises ConfigError with every mistake."""
    from megatrain.config.file import load_config

    return load_config(file, overrides or [])


def existing(path: Path) -> Path:
    """Raises ConfigError when there is nothing of that name."""
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder.")
    return path


def existing_run(path: Path) -> "RunDir":
    """Raises ConfigError when the folder holds no run."""
    from megatrain.run.directory import RunDir

    run = RunDir(path)
    if not run.config.is_file():
        raise ConfigError(f"{path}: is not a run: there is no {run.config}.")
    return run


def run_and_checkpoint(path: Path) -> "tuple[RunDir, Path | None]":
    """The run, or the checkpoint, that a path names. Raises CheckpointError where it can be neither."""
    from megatrain.run.directory import locate

    if not existing(path).is_dir():
        raise CheckpointError(f"{path}: is no folder, and so no run and no checkpoint")
    return locate(path)
