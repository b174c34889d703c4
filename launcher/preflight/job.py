"""What Slurm has against a job, before it is submitted, and whether somebody has its run already."""

from launcher.planning.plan import resolve
from launcher.planning.plan_result import PlanResult
from launcher.planning.resolve import run_folder
from launcher.preflight.finding import Finding
from launcher.runs.owner import busy_with
from launcher.slurm import commands
from launcher.slurm.nodes import cores_per_gpu
from launcher.slurm.script import render
from megatrain.base.errors import MegatrainError
from megatrain.base.terminal import copyable
from megatrain.config import Config
from megatrain.run.directory import RunDir


def render_job(
    config: Config, result: PlanResult | None, *, profile: str | None, dry_run: bool
) -> tuple[str | None, list[Finding]]:
    """The job's script, and what is to be said of it; no script without a plan.

    Args:
        dry_run: a Slurm that does not answer has nothing against it.

    Raises:
        ConfigError: as `render`.
    """
    if result is None:
        return None, []
    resolved, run = resolve(config, result.chosen), run_folder(config)
    answers = not dry_run or commands.answers()
    ask = answers and result.hardware.device != "cpu" and resolved.slurm.cpus_per_task is None
    cores = cores_per_gpu(resolved.slurm.partition) if ask else None
    script = render(resolved, run, result.chosen, profile=profile, cores_per_gpu=cores)
    return script, check_job(script, run) if answers else []


def check_job(script: str, run: RunDir) -> list[Finding]:
    """What Slurm has against this job, and whether the run has one already."""
    findings = []
    if "#SBATCH --gpus-per-node" in script and "#SBATCH --cpus-per-" not in script:
        text = "slurm.cpus_per_task: not given, and Slurm names no node with GPUs: a rank may get one core."
        findings.append(Finding("warning", text))
    try:
        if busy := busy_with(run):
            word = copyable(run)
            text = f"{run}: {busy} already holds this run. Follow it: megatrain status {word}."
            findings.append(Finding("error", f"{text} Stop it: megatrain stop {word}"))
        commands.test_only(script)
    except MegatrainError as error:
        findings.append(Finding("error", str(error), error.exit_code))
    return findings
