"""The verbs of a run's life as a job: submit, status, logs, stop, resubmit."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatrain.base.errors import ConfigError, PreflightError
from megatrain.base.terminal import complain, copyable, say

if TYPE_CHECKING:
    from megatrain.run.directory import RunDir

File = Annotated[Path, typer.Argument(help="the run, as YAML", metavar="FILE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="fields to set, over the file", metavar="[KEY=VALUE]...")]
Json = Annotated[bool, typer.Option("--json", help="as JSON, for programs")]
Run = Annotated[Path, typer.Argument(help="a run's folder", metavar="RUN")]
Chain = Annotated[int, typer.Option(min=1, help="jobs, each starting when the one before has ended")]


def register(app: typer.Typer) -> None:
    for verb in (submit, status, logs, stop, resubmit):
        app.command()(verb)


def submit(
    file: File,
    overrides: Overrides = None,
    profile: Annotated[str | None, typer.Option(help="site profile: a name in slurm/profiles, or a file")] = None,
    chain: Chain = 1,
    resume: Annotated[
        str, typer.Option(help="auto, must, never, or a step to go back to", metavar="auto|…|STEP")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the script, and nothing else")] = False,
    as_json: Json = False,
) -> None:
    """Check a run and hand it to Slurm, which starts it again until it is done.

    A dry run prints the script even where a check fails; the exit code says so. Going back to a step is done at once,
    before the job is queued, and not again when it is requeued.

    Example: megatrain submit configs/llama-7b.yaml slurm.partition=gpu --profile infiniband
    """
    from launcher.commands.render import headline
    from launcher.planning.plan import resolve
    from launcher.preflight import checks
    from launcher.runs.prepare import prepare_run, run_folder
    from launcher.slurm import commands, job
    from launcher.slurm.nodes import cores_per_gpu
    from launcher.slurm.script import render
    from megatrain.config.file import load_config

    found = checks.examine(load_config(file, overrides or []), resume=resume, as_job=True)
    script = None
    if found.report:
        resolved, plan = resolve(found.config, found.report.chosen), found.report.chosen
        answers = not dry_run or commands.answers()
        ask = answers and found.report.hardware.device != "cpu" and resolved.slurm.cpus_per_task is None
        cores = cores_per_gpu(resolved.slurm.partition) if ask else None
        script = render(resolved, run_folder(resolved), plan, profile=profile, cores_per_gpu=cores)
        if answers:
            found.findings.extend(job.findings(script, run_folder(resolved)))
    if as_json and (dry_run or found.errors):
        say(json.dumps(found.to_json() | {"script": script, "jobs": []}, indent=2), flush=True)
    elif dry_run and script:
        say(script, end="", flush=True)
    if not as_json:
        for finding in (*found.notes, *found.warnings):
            complain(finding.text, finding.level)
    report = found.demand()
    if dry_run:
        return
    assert script is not None, "there is a plan"
    run = prepare_run(found.config, report.chosen, resume=resume)
    if moved := job.go_back(run, resume):
        complain(moved, "megatrain")
    handed_in = job.submit(script, run, chain=chain)
    if as_json:
        say(json.dumps(found.to_json() | {"script": script, "jobs": handed_in}, indent=2))
        return
    say(headline(resolved, report.chosen))
    needed = checks.jobs_needed(resolved, report.chosen)
    if chain > 1 and needed > chain:
        _warn([f"--chain {chain}: the run is planned to take {needed} jobs of {resolved.slurm.time}"])
    elif needed > 1:
        say(f"planned to take {needed} times slurm.time ({resolved.slurm.time}); it is queued again until it is done")
    _said(handed_in, run)


def status(
    run: Annotated[Path | None, typer.Argument(help="default: every run in runs/", metavar="[RUN]")] = None,
    as_json: Json = False,
) -> None:
    """Where a run is: job, step, speed, time left, restarts, goodput, last checkpoint, last error.

    Example: megatrain status runs/llama-125m
    """
    from launcher.runs import status as status_of

    if run is not None:
        one = status_of.status(_run(run))
        say(json.dumps(one.to_json(), indent=2) if as_json else "\n".join(status_of.lines(one)))
        return
    many = status_of.all_statuses(Path("runs"))
    if as_json:
        say(json.dumps([one.to_json() for one in many], indent=2))
    else:
        say("\n".join(status_of.table(many)) or "runs/ holds no run")


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the run ends")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="of the end, to begin with")] = 100,
    rank: Annotated[int | None, typer.Option(min=0, help="of a run on this machine")] = None,
) -> None:
    """What a run prints.

    Example: megatrain logs runs/llama-125m -f
    """
    from launcher.runs import logs as log_files

    for text in log_files.read(_run(run), lines=lines, rank=rank, follow=follow):
        say(text, end="", flush=True)


def stop(
    run: Run,
    now: Annotated[bool, typer.Option("--now", help="without a checkpoint")] = False,
    timeout: Annotated[int, typer.Option(min=0, help="seconds to wait for the end; 0: do not")] = 0,
) -> None:
    """Let a run save and stop, wherever it runs, and keep it from being queued again.

    Example: megatrain stop runs/llama-125m
    """
    from launcher.runs import status as status_of
    from launcher.slurm import job

    folder = _run(run)
    say(job.stop(folder, now=now))
    deadline = time.monotonic() + timeout
    while timeout and (state := status_of.status(folder).state) in ("running", "pending"):
        if time.monotonic() > deadline:
            raise PreflightError(
                f"{run}: is still {state} after {timeout} s; `megatrain stop {copyable(run)} --now` ends it"
            )
        time.sleep(1.0)


def resubmit(run: Run, chain: Chain = 1) -> None:
    """Hand a run in again, as it was submitted: after a stop, or when it was given up.

    Example: megatrain resubmit runs/llama-125m
    """
    from launcher.preflight import checks
    from launcher.slurm import job
    from megatrain.checkpoint.progress import is_complete
    from megatrain.config.file import load_config

    folder = _run(run)
    if not folder.job_script.is_file():
        raise ConfigError(f"{run}: was never submitted. Use `megatrain submit FILE`, or `megatrain train FILE`.")
    script = folder.job_script.read_text(encoding="utf-8")
    config = load_config(folder.config)
    if is_complete(folder, config):
        raise ConfigError(f"{run}: is complete, at step {folder.steps()[-1]:,}. Submit it with more to go on.")
    found = checks.examine(config, as_job=True)
    found.findings.extend(job.findings(script, folder))
    _warn([finding.text for finding in found.warnings])
    found.demand()
    _said(job.submit(script, folder, chain=chain), folder)


def _said(handed_in: list[str], run: "RunDir") -> None:
    from launcher.slurm.script import next_commands

    plural = "s" if len(handed_in) > 1 else ""
    say(f"submitted job{plural} {' '.join(handed_in)}\n{next_commands(run)}")


def _warn(texts: list[str]) -> None:
    for text in texts:
        complain(text, "warning")


def _run(path: Path) -> "RunDir":
    from megatrain.run.directory import RunDir

    run = RunDir(path)
    if not run.config.is_file():
        raise ConfigError(f"{path}: is not a run: there is no {run.config}.")
    return run
