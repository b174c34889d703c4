"""The `megatrain` command: its verbs, and how it ends. A verb is a file in commands/ and a line in VERBS."""

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from megatrain.base.errors import ExitCode, MegatrainError
from megatrain.base.terminal import accept_any_text, complain, say
from megatrain.version import __version__

# Modules of launcher.commands, each with a function of its own name; a package's docstring is its group's help. A
# module imports what takes time inside that function, so that the command answers at once.
VERBS = (
    "plan",
    "train",
    "finetune",
    "submit",
    "status",
    "logs",
    "stop",
    "resubmit",
    "generate",
    "evaluate",
    "predict",
    "export",
    "grow",
    "tensorboard",
    "doctor",
    "config.check",
    "config.show",
    "config.schema",
    "data.prepare",
    "data.inspect",
    "data.preview",
    "data.verify",
    "data.plan",
    "data.stream",
    "data.tokenizer.train",
    "data.tokenizer.import_",
    "checkpoint.ls",
    "checkpoint.verify",
)


def command() -> typer.Typer:
    """The command with every verb in its group."""
    groups = {"": _group("Pretrain and fine-tune Transformers on a Slurm GPU cluster, on DeepSpeed.")}
    groups[""].callback(invoke_without_command=True)(_version)
    for verb in VERBS:
        path, _, name = verb.rpartition(".")
        function = getattr(import_module(f"launcher.commands.{verb}"), name)
        _find_group(groups, path).command(name.removesuffix("_"))(function)
    return groups[""]


def _find_group(groups: dict[str, typer.Typer], path: str) -> typer.Typer:
    """The group of a package such as `data.tokenizer`, made and put into the one above it where it is new."""
    if path not in groups:
        above, _, name = path.rpartition(".")
        groups[path] = _group(import_module(f"launcher.commands.{path}").__doc__)
        _find_group(groups, above).add_typer(groups[path], name=name)
    return groups[path]


def _group(text: str | None) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # plain text: examples stay as they are written, and rich is not imported
        pretty_exceptions_enable=False,
    )


def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        say(f"megatrain {__version__}")
        raise typer.Exit


app = command()


def main() -> None:
    """The console script."""
    _use_utf8()
    accept_any_text()
    try:
        app()
    except MegatrainError as error:
        complain(error)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk that is full, a folder that is gone, a name that is too long
        name = os.fsdecode(error.filename) if error.filename is not None else "standard output"
        complain(f"{name}: {error.strerror or error}")
        sys.exit(ExitCode.PREFLIGHT)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _flush()


def _flush() -> None:
    """Now, where a full disk is one line: while the interpreter shuts down, it would replace the exit code by 120."""
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for what is left in its buffer
        print(f"error: standard output: cannot be written: {error.strerror}", file=sys.stderr)


def _use_utf8() -> None:
    """Start again in UTF-8 mode where the locale would have file names in another encoding, or in none (ASCII)."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.ignore_environment:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
