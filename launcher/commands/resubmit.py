"""`megatrain resubmit`."""

from launcher.commands.options import Chain, Run, existing_run
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say


def resubmit(run: Run, chain: Chain = 1) -> None:
    """Submit a run again, as it was submitted: after a stop, or when it was aborted.

    Example: megatrain resubmit runs/llama-125m
    """
    from launcher.commands.submit import submitted_text
    from launcher.preflight import checks
    from launcher.preflight.job import check_job
    from launcher.slurm import job
    from megatrain.checkpoint.progress import is_complete
    from megatrain.config.file import load_own_config

    folder = existing_run(run)
    if not folder.job_script.is_file():
        raise ConfigError(f"{run}: was never submitted. Use `megatrain submit FILE`, or `megatrain train FILE`.")
    script = folder.job_script.read_text(encoding="utf-8")
    config = load_own_config(folder.config)
    if is_complete(folder, config):
        step = folder.steps()[-1]
        raise ConfigError(f"{run}: is complete, at step {step:,}. Submit it with more steps or tokens to resume.")
    preflight = checks.examine(config, as_job=True)
    preflight.findings.extend(check_job(script, folder))
    for finding in preflight.warnings:
        complain(finding.text, "warning")
    preflight.demand()
    say(submitted_text(job.submit(script, folder, chain=chain), folder))
