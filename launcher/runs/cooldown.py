"""`--cooldown-from`: the configuration of a run that goes on from a checkpoint of another and decays its rate.

The other run is only read. What is taken from it (the step, the samples, the rate) is kept in the new run's
config.yaml, and taken from there once the new run has checkpoints: the other may then be gone.
"""

import re
from pathlib import Path
from typing import NamedTuple, cast, get_args

from launcher.planning.resolve import run_folder
from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.base.formatting import scientific
from megatrain.base.progress import Progress
from megatrain.checkpoint.manifest import has_all_files
from megatrain.checkpoint.progress import progress_of
from megatrain.checkpoint.state import STATE, read_counts
from megatrain.config import Config, FinetuneConfig
from megatrain.config.file import load_own_config
from megatrain.config.run import BranchSection
from megatrain.run.directory import RunDir, locate, parse_step
from megatrain.schedule.cooldown import CooldownSection
from megatrain.schedule.decay import Decay
from megatrain.schedule.learning_rate import learning_rate
from megatrain.schedule.registry import SCHEDULES

_TOKENS = re.compile(r"[0-9][0-9_]{0,20}|[0-9]{1,15}(\.[0-9]{1,15})?[eE]\+?[0-9]{1,2}")


class Cooldown(NamedTuple):
    """What the options ask for."""

    source: str  # a run, RUN@STEP, or a checkpoint's folder
    tokens: int
    decay: Decay
    min_lr_ratio: float

    @classmethod
    def from_options(cls, source: str | None, tokens: str | None, decay: str, min_lr_ratio: float) -> "Cooldown | None":
        """None where neither of the first two is given.

        Raises:
            ConfigError: one of them is, or a value is none that it can have.
        """
        if source is None and tokens is None:
            return None
        if source is None or tokens is None:
            missing, given = ("--cooldown-from", "--cooldown-tokens")[:: 1 if source is None else -1]
            raise ConfigError(f"{given}: needs {missing} as well.")
        number = float(tokens.replace("_", "")) if _TOKENS.fullmatch(tokens) else 0.0
        if not (1 <= number <= 10**15 and number.is_integer()):
            raise ConfigError(f"--cooldown-tokens {tokens[:40]}: must be a number of tokens above 0, such as 2e9.")
        if decay not in get_args(Decay):
            raise ConfigError(f"--cooldown-decay {decay}: must be one of {', '.join(get_args(Decay))}.")
        return cls(source, int(number), cast(Decay, decay), min_lr_ratio)


def with_cooldown(config: Config, cooldown: Cooldown | None) -> Config:
    """The same run as one that goes on from `cooldown.source`: its run.branch, schedule and training.tokens.

    Args:
        config: of the new run, with a folder of its own; its length and its schedule are replaced.

    Raises:
        ConfigError: the rate decays at that checkpoint already, or the tokens are no whole steps.
        CheckpointError: there is no such checkpoint.
    """
    if cooldown is None:
        return config
    if isinstance(config, FinetuneConfig):
        raise ConfigError("--cooldown-from: is for pretraining. Give the fine-tuning a schedule that decays.")
    _check_tokens(config, cooldown.tokens)
    branch, ratio = _begun(config, cooldown.source) or _read(config, cooldown.source)
    if config.training.batch_sizes.at(branch.samples) != config.training.global_batch_size:
        raise ConfigError(
            f"--cooldown-from {cooldown.source}: sample {branch.samples:,} is in training.batch_size_warmup. "
            "Name a later checkpoint."
        )
    if cooldown.min_lr_ratio >= ratio:
        raise ConfigError(
            f"--cooldown-min-lr-ratio {cooldown.min_lr_ratio}: must be below {ratio:.3g}, where the rate begins. Try 0."
        )
    schedule = CooldownSection(start_lr_ratio=ratio, decay=cooldown.decay, min_lr_ratio=cooldown.min_lr_ratio)
    tokens = branch.samples * config.sequence_length + cooldown.tokens
    update = {
        "run": config.run.model_copy(update={"branch": branch}),
        "schedule": schedule,
        "training": config.training.model_copy(update={"tokens": tokens, "steps": None}),
    }
    return config.model_copy(update=update)


def _check_tokens(config: Config, tokens: int) -> None:
    each = config.tokens_per_step
    if tokens % each:
        below = tokens // each * each
        fix = " or ".join(str(number) for number in (below, below + each) if number)
        raise ConfigError(
            f"--cooldown-tokens {tokens}: must be a multiple of {each}, the tokens of a step "
            f"(training.global_batch_size × data.sequence_length). Try {fix}."
        )


def _begun(config: Config, source: str) -> tuple[BranchSection, float] | None:
    """What the run itself keeps of where it began, once it has checkpoints."""
    run = run_folder(config)
    if not (run.steps() and run.config.is_file()):
        return None
    own = load_own_config(run.config)
    if own.run.branch is None or not isinstance(own.schedule, CooldownSection):
        return None
    other, step = _named(source)
    same = locate(Path(own.run.branch.checkpoint))[0].path.resolve() == other.path.resolve()
    if not same or step not in (None, own.run.branch.step):
        raise ConfigError(
            f"--cooldown-from {source}: {run} went on from {own.run.branch.checkpoint}. "
            "Name that, or give another run.name."
        )
    return own.run.branch, own.schedule.start_lr_ratio * own.optimizer.learning_rate / config.optimizer.learning_rate


def _read(config: Config, source: str) -> tuple[BranchSection, float]:
    """Where the other run stands at that checkpoint, and its rate there over this run's peak."""
    run, step = _named(source)
    if not run.config.is_file():
        raise ConfigError(
            f"--cooldown-from {source}: is not a run (there is no {run.config}). Give RUN, RUN@STEP, or a checkpoint."
        )
    if run.path.resolve() == run_folder(config).path.resolve():
        raise ConfigError(
            f"run.name: {config.run.name}: is the run that would be cooled down, and goes on itself. "
            f"Give the cooldown a folder of its own: run.name={config.run.name}-cooldown."
        )
    steps = run.steps()
    whole = [one for one in steps if step in (None, one) and has_all_files(run.step(one))]
    if not whole:
        have = ", ".join(map(str, steps[-5:])) or "none"
        what = "no whole checkpoint" if step is None else f"no whole checkpoint of step {step}"
        raise CheckpointError(f"--cooldown-from {source}: {run} has {what}; steps saved: {have}.")
    folder = run.step(whole[-1])
    progress = progress_of(read_counts(folder).facts(), folder / STATE)
    before = load_own_config(run.config)
    _check_stable(before, progress, source)
    branch = BranchSection(checkpoint=str(folder), step=progress.step, samples=progress.samples)
    return branch, learning_rate(_last(progress, before), before) / config.optimizer.learning_rate


def _named(source: str) -> tuple[RunDir, int | None]:
    if match := re.fullmatch(r"(.+)@([0-9]{1,15})", source):
        return RunDir(match[1]), int(match[2])
    run, checkpoint = locate(Path(source))
    return run, parse_step(checkpoint) if checkpoint is not None else None


def _check_stable(before: Config, progress: Progress, source: str) -> None:
    """The rate must be at its peak there, or of a schedule that knows no end."""
    name, peak = before.schedule.name, before.optimizer.learning_rate
    if progress.step < max(1, before.schedule.warmup_steps):
        raise ConfigError(
            f"--cooldown-from {source}: step {progress.step:,} is in the warm-up of {before.schedule.warmup_steps:,} "
            "steps. Name a later checkpoint."
        )
    rate = learning_rate(_last(progress, before), before)
    if SCHEDULES.get(name).ends and rate < peak:
        fix = "Name a checkpoint before its decay." if name == "wsd" else "Train the long run with wsd or constant."
        raise ConfigError(
            f"--cooldown-from {source}: the schedule of that run, {name}, decays at step {progress.step:,} already "
            f"(learning rate {scientific(rate)}, peak {scientific(peak)}). {fix}"
        )


def _last(progress: Progress, config: Config) -> Progress:
    """Before the last step that was done."""
    step = progress.step - 1
    samples = progress.samples_at(step, config.training.batch_sizes)
    return Progress(step, samples, tuple(part for part in progress.batches if part[0] <= step))
