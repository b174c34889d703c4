"""`megatrain finetune FILE --folds K`: a run for each fold, one after another."""

from pathlib import Path

import typer

from launcher.commands.options import load
from launcher.launch.start import LaunchTarget, start
from launcher.planning.resolve import run_folder
from launcher.preflight import checks
from launcher.runs.folds import fold_configs, summarize
from launcher.runs.prepare import is_finetune
from megatrain.base.errors import ConfigError
from megatrain.base.terminal import complain, say
from megatrain.config import FinetuneConfig


def run_folds(
    file: Path, overrides: list[str] | None, target: LaunchTarget, *, count: int, by: str | None, resume: str
) -> None:
    """Raises typer.Exit with the exit code of the first run that ends otherwise than well; MegatrainError before."""
    config = load(file, overrides)
    if not is_finetune(config):
        raise ConfigError(f"{file}: has no `finetune:` section, and so no examples that could be split into folds")
    if target.hosts is not None or target.node is not None:
        raise ConfigError("--folds: starts ranks on this machine only. Leave --hosts out")
    assert isinstance(config, FinetuneConfig)
    applied, world_size = target.apply_to(config)
    assert isinstance(applied, FinetuneConfig)
    configs = fold_configs(applied, count, by)
    found = [
        checks.examine(one, world_size=world_size, resume=resume) for one in configs
    ]  # all before the first starts
    plans = [one.demand() for one in found]
    for number, (one, plan) in enumerate(zip(configs, plans, strict=True), start=1):
        say(f"fold {number} of {count}: {run_folder(one)}", flush=True)
        for finding in found[number - 1].warnings:
            complain(finding.text, finding.level)
        if code := start(one, plan, target, resume=resume):
            raise typer.Exit(code)
    say("\n".join(_lines(applied, configs)))


def _lines(config: FinetuneConfig, configs: list[FinetuneConfig]) -> list[str]:
    summaries = summarize(config, [run_folder(one) for one in configs])
    width = max(map(len, summaries))
    lines = [f"{len(configs)} folds, mean ± standard deviation of the last evaluations"]
    for name, summary in summaries.items():
        lines.append(f"  {name:{width}}  {summary.mean:8.4f} ± {summary.deviation:.4f}")
    return lines
