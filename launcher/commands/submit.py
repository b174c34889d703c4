"""`megatrain submit`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import (
    Chain,
    CooldownDecay,
    CooldownFrom,
    CooldownMinimum,
    CooldownTokens,
    File,
    Json,
    Overrides,
    load,
)
from megatrain.base.terminal import complain, say

if TYPE_CHECKING:
    from launcher.planning.plan_result import Plan
    from megatrain.config import Config
    from megatrain.run.directory import RunDir

Profile = Annotated[str | None, typer.Option(help="site profile: a name in slurm/profiles, or a file")]
BackTo = Annotated[str, typer.Option(help="auto, must, never, or a step to go back to", metavar="auto|…|STEP")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the script, and nothing else")]


def submit(
    file: File,
    overrides: Overrides = None,
    profile: Profile = None,
    chain: Chain = 1,
    resume: BackTo = "auto",
    cooldown_from: CooldownFrom = None,
    cooldown_tokens: CooldownTokens = None,
    cooldown_decay: CooldownDecay = "sqrt",
    cooldown_minimum: CooldownMinimum = 0.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Check a run and submit it to Slurm, which requeues it until it is done.

    A dry run prints the script even where a check fails; the exit code says so. Going back to a step is done at once,
    before the job is queued, and not again when it is requeued. A cooldown is a run of its own: see `megatrain train`.

    Example: megatrain submit configs/llama-7b.yaml slurm.partition=gpu --profile infiniband
    """
    from launcher.planning.plan import resolve
    from launcher.preflight import checks
    from launcher.preflight.job import render_job
    from launcher.runs.cooldown import Cooldown, with_cooldown
    from launcher.runs.prepare import prepare_run
    from launcher.runs.rewind import rewind_run
    from launcher.slurm import job

    cooldown = Cooldown.from_options(cooldown_from, cooldown_tokens, cooldown_decay, cooldown_minimum)
    config = with_cooldown(load(file, overrides), cooldown)
    preflight = checks.examine(config, resume=resume, as_job=True)
    script, findings = render_job(preflight.config, preflight.result, profile=profile, dry_run=dry_run)
    preflight.findings.extend(findings)
    if as_json and (dry_run or preflight.errors):
        say(json.dumps(preflight.to_json() | {"script": script, "jobs": []}, indent=2), flush=True)
    elif dry_run and script:
        say(script, end="", flush=True)
    if not as_json:
        for finding in (*preflight.notes, *preflight.warnings):
            complain(finding.text, finding.level)
    result = preflight.demand()
    if dry_run:
        return
    assert script is not None, "there is a plan"
    run = prepare_run(preflight.config, result.chosen, resume=resume)
    if moved := rewind_run(run, resume):
        complain(moved, "megatrain")
    jobs = job.submit(script, run, chain=chain)
    if as_json:
        say(json.dumps(preflight.to_json() | {"script": script, "jobs": jobs}, indent=2))
    else:
        _tell_of_jobs(resolve(preflight.config, result.chosen), result.chosen, chain)
        say(submitted_text(jobs, run))


def submitted_text(jobs: list[str], run: "RunDir") -> str:
    """The jobs' ids, and the commands to follow them."""
    from launcher.slurm.script import next_commands

    return f"submitted job{'s' if len(jobs) > 1 else ''} {' '.join(jobs)}\n{next_commands(run)}"


def _tell_of_jobs(config: "Config", plan: "Plan", chain: int) -> None:
    """What was planned, and how many jobs that takes. `config` is resolved."""
    from launcher.commands.render import headline
    from launcher.preflight.checks import jobs_needed

    say(headline(config, plan))
    needed = jobs_needed(config, plan)
    if chain > 1 and needed > chain:
        complain(f"--chain {chain}: the run is planned to take {needed} jobs of {config.slurm.time}", "warning")
    elif needed > 1:
        say(f"planned to take {needed} times slurm.time ({config.slurm.time}); it is requeued until it is done")
