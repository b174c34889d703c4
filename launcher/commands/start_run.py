"""What `train` and `finetune` share: plan, check, write the run's folder, and start its ranks."""

import json
from pathlib import Path

import typer

from launcher.commands.options import load
from launcher.commands.render import plan_text
from launcher.launch.start import LaunchTarget, start
from launcher.planning.plan import resolve
from launcher.preflight import checks
from launcher.preflight.machine import check_machine
from launcher.runs.cooldown import Cooldown, with_cooldown
from launcher.runs.prepare import is_finetune
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say


def start_run(
    file: Path,
    overrides: list[str] | None,
    target: LaunchTarget,
    *,
    verb: str,
    resume: str,
    dry_run: bool,
    as_json: bool,
    cooldown: Cooldown | None = None,
) -> None:
    """Raises typer.Exit with the exit code of the ranks; MegatrainError where a check fails."""
    config = load(file, overrides)
    expected = "finetune" if is_finetune(config) else "train"
    if verb != expected:
        section = "a" if is_finetune(config) else "no"
        raise ConfigError(f"{file}: has {section} `finetune:` section. Use `megatrain {expected}`.")
    config, world_size = target.apply_to(with_cooldown(config, cooldown))
    preflight = checks.examine(config, world_size=world_size, resume=resume)
    if preflight.result is not None and target.hosts is None:  # hosts are looked at where they are
        chosen, starting = preflight.result.chosen, not dry_run
        here = chosen.world_size // target.nodes
        machine = check_machine(preflight.result.hardware, ranks=chosen.world_size, here=here, starting=starting)
        preflight.findings.extend(machine)
    if as_json:
        say(json.dumps(preflight.to_json(), indent=2), flush=True)
    elif dry_run and preflight.result:
        say(plan_text(resolve(config, preflight.result.chosen), preflight.result), flush=True)
    if not as_json:
        for finding in (*preflight.notes, *preflight.warnings):
            complain(finding.text, finding.level)
    result = preflight.demand()
    if not dry_run:
        raise typer.Exit(start(config, result, target, resume=resume))
