"""The `megatrain` command. Each verb imports what it needs when it runs, so that the command answers at once."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.data import app as data_app
from launcher.commands.jobs import register as register_job_verbs
from megatrain.base.errors import CheckpointError, ConfigError, ExitCode, MegatrainError
from megatrain.base.terminal import accept_any_text, complain, copyable, say
from megatrain.version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel

    from launcher.launch.start import LaunchTarget
    from launcher.planning.plan import PlanResult
    from megatrain.config import Config
    from megatrain.run.directory import RunDir

_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,  # plain text: examples stay as they are written, and rich is not imported
    "pretty_exceptions_enable": False,
}
app = typer.Typer(help="Pretrain and fine-tune Transformers on a Slurm GPU cluster, on DeepSpeed.", **_OPTIONS)
config_app = typer.Typer(help="Look at a run's configuration.", **_OPTIONS)
checkpoint_app = typer.Typer(help="Look at a run's checkpoints.", **_OPTIONS)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app, name="checkpoint")

File = Annotated[Path, typer.Argument(help="the run, as YAML", metavar="FILE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="fields to set, over the file", metavar="[KEY=VALUE]...")]
Json = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]
Ranks = Annotated[int | None, typer.Option("--nproc", min=1, max=1024, help="ranks to start; default: the cluster's")]
Resume = Annotated[str, typer.Option(help="auto, must, never, or a checkpoint's step", metavar="auto|must|never|STEP")]
Hosts = Annotated[str | None, typer.Option(help="start by ssh, one launcher a host", metavar="HOST[:RANKS],…")]
HostFile = Annotated[Path | None, typer.Option(help="the same as a DeepSpeed hostfile: HOST slots=RANKS a line")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="plan and check, start nothing, write nothing")]


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


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        say(f"megatrain {__version__}")
        raise typer.Exit


@config_app.command("check")
def config_check(file: File, overrides: Overrides = None) -> None:
    """Report every mistake of a file at once.

    Example: megatrain config check configs/llama-125m.yaml training.steps=100
    """
    from megatrain.config.rules import warmup_issue

    config = _load(file, overrides)
    if problem := warmup_issue(config):
        raise ConfigError(f"{file}: {problem.field}: {problem.value}: {problem.rule}. {problem.fix}")
    say(f"{file}: no mistakes ({type(config).__name__.removesuffix('Config').lower()} run {config.run.name})")


@config_app.command("show")
def config_show(file: File, overrides: Overrides = None) -> None:
    """Print the whole configuration, defaults included.

    Example: megatrain config show configs/llama-125m.yaml parallel.zero_stage=3
    """
    from megatrain.config.file import dump_config

    say(dump_config(_load(file, overrides)), end="")


@config_app.command("schema")
def config_schema(
    kind: Annotated[
        str, typer.Argument(help="pretrain, finetune, or a file: of its kind", metavar="[pretrain|finetune|FILE]")
    ] = "pretrain",
) -> None:
    """Print the JSON Schema of a file, for an editor to complete and check with.

    Example: megatrain config schema > megatrain.schema.json
    """
    from megatrain.config import FinetuneConfig, PretrainConfig

    kinds: dict[str, type[BaseModel]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    if kind not in kinds and not Path(kind).is_file():
        raise ConfigError(f"config schema {kind}: must be pretrain or finetune, or a file.")
    chosen = kinds[kind] if kind in kinds else type(_load(Path(kind), None))
    say(json.dumps(chosen.model_json_schema(), indent=2))


@app.command()
def plan(
    file: File,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="plan for so many GPUs instead of the cluster's")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="plan on each number of nodes: nodes=1,2,4,…,1024", metavar="nodes=…")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="draw the sweep", metavar="FILE")] = None,
    days: Annotated[float | None, typer.Option(min=0.001, help="how many GPUs end the run in so many days?")] = None,
    largest: Annotated[bool, typer.Option("--largest", help="the largest batch and model that fit")] = False,
    double: Annotated[bool, typer.Option("--double", help="what twice the nodes would change")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="measure this machine, and write FILE as a profile for cluster.hardware")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose the layout of a run and say why, without a GPU; or answer one of the questions below.

    Example: megatrain plan configs/llama-7b.yaml cluster.nodes=16
    """
    if calibrate:
        from launcher.planning.calibrate import calibrate as measure

        say(measure(file, gpus))
        return
    from launcher.commands import plan as plan_cli
    from launcher.planning.assumed import assume

    config, assumed = assume(_load(file, overrides), file)
    for sentence in assumed:
        say(f"assumed: {sentence}", file=sys.stderr)
    if gpus is not None:
        config = plan_cli.on_gpus(config, gpus)
    if sweep is not None:
        plan_cli.show_sweep(config, sweep, png, as_json)
    elif png is not None:
        raise ConfigError("--png: draws a sweep; give --sweep nodes=1,2,4 as well.")
    elif days is not None or largest or double:
        plan_cli.answer(config, days=days, largest=largest, double=double)
    else:
        plan_cli.show_plan(config, as_json, assumed)


@app.command()
def train(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train on this machine, or on several by ssh. With --json, the checks' findings.

    Example: megatrain train configs/llama-125m.yaml cluster.nodes=1 --nproc 8
    """
    from launcher.launch.start import LaunchTarget

    where = LaunchTarget.from_options(nproc, hosts, hostfile)
    _run_here(file, overrides, resume, dry_run, as_json, finetune=False, where=where)


@app.command()
def finetune(
    file: File,
    overrides: Overrides = None,
    nproc: Ranks = None,
    hosts: Hosts = None,
    hostfile: HostFile = None,
    resume: Resume = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on this machine, from a run or a model in Hugging Face's format.

    Example: megatrain finetune configs/quickstart-finetune.yaml finetune.base=runs/llama-125m --nproc 8
    """
    from launcher.launch.start import LaunchTarget

    where = LaunchTarget.from_options(nproc, hosts, hostfile)
    _run_here(file, overrides, resume, dry_run, as_json, finetune=True, where=where)


register_job_verbs(app)


@checkpoint_app.command("ls")
def checkpoint_ls(run: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """List a run's checkpoints.

    Example: megatrain checkpoint ls runs/llama-125m
    """
    from megatrain.checkpoint.manifest import list_checkpoints

    where, _ = _checkpoints_of(run)
    found = list_checkpoints(where)
    listed = {info.step for info in found}
    for step in where.step_folders():
        if step not in listed:
            text = f"{where.step(step)}: has no manifest that can be read"
            complain(f"{text}; `megatrain checkpoint verify {copyable(run)}`", "warning")
    if as_json:
        fields = ("step", "path", "bytes", "files", "world_size", "layout", "saved_at")
        say(json.dumps([{name: getattr(info, name) for name in fields} for info in found], indent=2, default=str))
        return
    for info in found:
        size = f"{info.bytes / 2**20:,.1f} MiB"
        say(f"step {info.step:>9,}  {size:>14}  {info.files:>3} files  {info.saved_at}  {info.layout}")
    if not where.step_folders():
        say(f"{run} has no checkpoint yet")


@checkpoint_app.command("verify")
def checkpoint_verify(
    run: Annotated[Path, typer.Argument(help="a run, or one checkpoint", metavar="RUN")], as_json: Json = False
) -> None:
    """Read every byte of a run's checkpoints and compare it with what was written; exit 5 where one differs.

    Example: megatrain checkpoint verify runs/llama-125m
    """
    from megatrain.checkpoint.manifest import verify
    from megatrain.checkpoint.metadata import check_contents

    where, one = _checkpoints_of(run)
    folders = [one] if one is not None else [where.step(step) for step in where.step_folders()]
    found = {str(folder): verify(folder) or check_contents(folder) for folder in folders}
    if as_json:
        say(json.dumps([{"path": path, "problems": problems} for path, problems in found.items()], indent=2))
    else:
        for path, problems in found.items():
            say("\n".join(f"{path}: {problem}" for problem in problems) or f"{path}: intact")
    if not found:
        raise CheckpointError(f"{run}: holds no checkpoint (looked for {where.checkpoints}/step-*): nothing to verify")
    if any(found.values()):
        raise typer.Exit(ExitCode.CHECKPOINT)


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(help="a run, or one checkpoint", metavar="RUN_OR_CHECKPOINT")],
    prompt: Annotated[str, typer.Argument()],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token")] = 0.8,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Continue a text with a trained model.

    Example: megatrain generate runs/llama-125m "The purpose of" --temperature 0
    """
    from megatrain.generate import generate as continue_text

    _existing(path)
    warn = partial(complain, kind="warning")
    say(continue_text(path, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, warn=warn))


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="a run, or one checkpoint", metavar="RUN_OR_CHECKPOINT")],
    out: Annotated[Path, typer.Argument(help="a new folder", metavar="FOLDER")],
    dtype: Annotated[str, typer.Option(help="of the weights: bfloat16, float16 or float32")] = "bfloat16",
    shard_gb: Annotated[float, typer.Option(min=0.001, help="the most that one file of weights takes")] = 5.0,
) -> None:
    """Write a folder that Hugging Face's libraries load: safetensors, config.json and the tokenizer.

    Example: megatrain export runs/llama-125m exported/llama-125m --dtype float32
    """
    from megatrain.base.formatting import gib, quantity
    from megatrain.huggingface import export as exporting

    _existing(path)
    if dtype not in exporting.DTYPES:
        raise ConfigError(f"--dtype {dtype}: must be one of {', '.join(exporting.DTYPES)}")
    done = exporting.export(
        path,
        out,
        dtype=dtype,
        shard_bytes=round(shard_gb * 1e9),
        report=partial(say, file=sys.stderr),
        warn=partial(complain, kind="warning"),
    )
    say(
        f"{done.folder}: {quantity(done.parameters)} parameters in {dtype}, {gib(done.bytes)}, "
        f"of {done.checkpoint}\n"
        f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(done.folder)!r})"
    )


@app.command()
def tensorboard(
    runs: Annotated[list[Path] | None, typer.Argument(help="default: every run in runs/", metavar="[RUN]...")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535)] = 6006,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be seen from other machines")] = "localhost",
) -> None:
    """Look at runs in TensorBoard.

    Example: megatrain tensorboard runs/llama-125m runs/llama-1b --port 6007
    """
    folders = [_existing(run) for run in runs or [Path("runs")]]
    where = ["--logdir", str(folders[0])]
    if len(folders) > 1:
        where = ["--logdir_spec", ",".join(f"{folder.name}:{folder}" for folder in folders)]
    command = [sys.executable, "-P", "-m", "tensorboard.main", *where, "--port", str(port), "--host", host]
    raise typer.Exit(subprocess.call(command))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has for a run, and what is amiss; exit 3 when something is.

    Example: megatrain doctor
    """
    from launcher.commands.doctor import examine

    checks = examine(Path("runs"))
    if as_json:
        say(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            say(f"{check.level:<8}{check.name:<14}{check.value}{'. ' + check.fix if check.fix else ''}")
    if any(check.level == "error" for check in checks):
        raise typer.Exit(ExitCode.PREFLIGHT)


def _load(file: Path, overrides: list[str] | None) -> "Config":
    from megatrain.config.file import load_config

    return load_config(file, overrides or [])


def _plan(file: Path, overrides: list[str] | None, world_size: int | None = None) -> "tuple[Config, PlanResult]":
    from launcher.planning.plan import make_plan

    config = _load(file, overrides)
    return config, make_plan(config, world_size=world_size)


def _run_here(
    file: Path,
    overrides: list[str] | None,
    resume: str,
    dry_run: bool,
    as_json: bool,
    *,
    finetune: bool,
    where: "LaunchTarget",
) -> None:
    """Plan, check, write the run's folder, and start its ranks."""
    from launcher.commands.render import plan_text
    from launcher.launch.start import start
    from launcher.planning.plan import resolve
    from launcher.preflight import checks
    from launcher.preflight.machine import check_machine
    from launcher.runs.prepare import is_finetune

    config = _load(file, overrides)
    if is_finetune(config) != finetune:
        verb, section = ("finetune", "a") if is_finetune(config) else ("train", "no")
        raise ConfigError(f"{file}: has {section} `finetune:` section. Use `megatrain {verb}`.")
    config, world_size = where.apply_to(config)
    found = checks.examine(config, world_size=world_size, resume=resume)
    if found.report is not None and where.hosts is None:  # hosts are looked at where they are
        chosen, starting = found.report.chosen, not dry_run
        here = chosen.world_size // where.nodes
        machine = check_machine(found.report.hardware, ranks=chosen.world_size, here=here, starting=starting)
        found.findings.extend(machine)
    if as_json:
        say(json.dumps(found.to_json(), indent=2), flush=True)
    elif dry_run and found.report:
        say(plan_text(resolve(config, found.report.chosen), found.report), flush=True)
    if not as_json:
        for finding in (*found.notes, *found.warnings):
            complain(finding.text, finding.level)
    report = found.demand()
    if not dry_run:
        raise typer.Exit(start(config, report, where, resume=resume))


def _checkpoints_of(path: Path) -> "tuple[RunDir, Path | None]":
    """The run, or the checkpoint, that a path names. Raises CheckpointError where it can be neither."""
    from megatrain.run.directory import locate

    if not _existing(path).is_dir():
        raise CheckpointError(f"{path}: is no folder, and so no run and no checkpoint")
    return locate(path)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder.")
    return path


if __name__ == "__main__":
    main()
