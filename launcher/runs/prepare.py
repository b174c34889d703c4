"""Writes a run's folder before it starts; refuses to start over another run, or from a checkpoint that is not there."""

from contextlib import suppress
from pathlib import Path

from launcher.deepspeed_config import deepspeed_config
from launcher.planning.hardware import load_hardware
from launcher.planning.plan import resolve
from launcher.planning.plan_result import Plan
from launcher.planning.resolve import run_folder
from launcher.run_fields import differences, resume_rule
from launcher.runs.branch import keep_branch
from launcher.runs.examples import keep_examples
from launcher.runs.inputs import keep_inputs, keep_inputs_late
from megatrain.base.errors import CheckpointError, ConfigError, MegatrainError, PreflightError
from megatrain.base.files import write_atomically, write_json
from megatrain.base.section import FIXED
from megatrain.checkpoint.manifest import has_all_files
from megatrain.checkpoint.rewind import refuse_lost_progress
from megatrain.checkpoint.state import read_state
from megatrain.config import Config, DataSection, FinetuneConfig, PretrainConfig
from megatrain.config.file import dump_config, load_own_config
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.ordering.position import changes_since, identity
from megatrain.data.text.tokenizer_files import tokenizer_sha256
from megatrain.huggingface.base_model import is_same_base
from megatrain.run.directory import RunDir, locate, parse_resume, parse_step
from megatrain.run.inputs import kept_tokenizer_sha256


def prepare_run(config: Config, plan: Plan, *, resume: str = "auto") -> RunDir:
    """Write copies of what the run takes from elsewhere; config.yaml (resolved), ds_config.json and plan.json.

    Args:
        resume: "auto", "must", "never", or the step to resume from.

    Raises:
        ConfigError: the folder holds another run, or `resume` is none of these.
        CheckpointError: the checkpoint that `resume` asks for is not there, or all that there were are gone.
        DataError: the tokenizer cannot be read.
        PreflightError: the folder cannot be written.
    """
    resolved, run = resolve(config, plan), run_folder(config)
    check_resume(run, resume)
    check_same_run(run, resolved)
    check_branch(run, resolved, resume)
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        (keep_inputs_late if started(run) else keep_inputs)(run, resolved)
        if isinstance(resolved, FinetuneConfig):
            keep_examples(run, resolved)
        write_atomically(run.config, dump_config(resolved))
        write_json(run.ds_config, deepspeed_config(resolved, plan.world_size))
        write_json(run.plan, {**plan.to_json(), "device": _device(resolved)})
        if resolved.run.branch is not None:  # last: with a checkpoint, the run has begun
            keep_branch(run, resolved.run.branch)
    except OSError as error:
        raise PreflightError(f"run.directory: {run}: cannot be written: {error.strerror}") from None
    return run


def _device(config: Config) -> str:
    """What ranks need to know of the hardware profile: cuda (also for ROCm, which calls itself so) or cpu."""
    hardware = load_hardware(config.cluster.hardware, config.cluster.gpus_per_node)
    return "cpu" if hardware.device == "cpu" else "cuda"


def check_resume(run: RunDir, resume: str) -> None:
    """See `prepare_run`."""
    wanted, steps = parse_resume(resume), run.steps()
    if wanted == "must" and not steps:
        raise CheckpointError(f"--resume must: {run} has no checkpoint. Start it with --resume auto.")
    if isinstance(wanted, int) and wanted not in steps:
        raise CheckpointError(f"--resume {resume}: {run} has no checkpoint of that step; it has: {_few(steps)}.")
    if wanted == "auto" and run.config.is_file():
        refuse_lost_progress(run, load_own_config(run.config).checkpoint.interval_steps)


def check_same_run(run: RunDir, resolved: Config) -> None:
    """Refuse a configuration whose model or data are not those of the run that the folder holds.

    Raises:
        ConfigError: names every field that differs.
        DataError: the data is not what the newest checkpoint was trained on.
    """
    if not (started(run) and run.config.is_file()):
        return
    if lines := _fixed_changes(run, resolved, run.steps()[-1] if run.steps() else None):
        raise ConfigError("\n".join([*lines, "this is another run: give it another run.name, or undo the change."]))


def check_branch(run: RunDir, resolved: Config, resume: str) -> None:
    """Refuse a run that is to go on from another's checkpoint, where that is not whole, or of another model or data.

    Raises:
        ConfigError: names every field that differs; or `resume` would begin the run without it.
        CheckpointError: there is no whole checkpoint.
        DataError: the data is not what it was trained on.
    """
    branch = resolved.run.branch
    if branch is None:
        return
    if resume == "never":
        raise ConfigError(f"--resume never: {run} goes on from {branch.checkpoint}. Give another run.name instead.")
    if run.steps():
        return
    folder = Path(branch.checkpoint)
    if parse_step(folder) != branch.step or not has_all_files(folder):
        raise CheckpointError(f"run.branch.checkpoint: {folder}: is no whole checkpoint of step {branch.step}.")
    other = locate(folder)[0]
    lines = [line for line in _fixed_changes(other, resolved, branch.step) if not line.startswith("run.branch")]
    if lines:
        raise ConfigError("\n".join([*lines, f"a run that goes on from {folder} cannot change it: undo the change."]))


def _fixed_changes(run: RunDir, resolved: Config, step: int | None) -> list[str]:
    """A line for each field that another run than that of the checkpoint of `step` would have."""
    changes = differences(load_own_config(run.config), resolved)
    changed = [name for name in changes if resume_rule(resolved, name) is FIXED]
    if isinstance(resolved, PretrainConfig) and _is_same_data(run, step, resolved.data, resolved.run.seed):
        changed = [key for key in changed if key != "data.train"]  # folders may have moved, sources may be new
    if "tokenizer.path" in changed and _is_same_tokenizer(run, *changes["tokenizer.path"]):
        changed.remove("tokenizer.path")
    for base in ("finetune.base", "continued.base"):
        if base in changed and _is_same_base(run, *changes[base]):
            changed.remove(base)
    return [f"{key}: {changes[key][1]!r}: {run} was started with {changes[key][0]!r}." for key in changed]


def _is_same_data(run: RunDir, step: int | None, data: DataSection, seed: int) -> bool:
    """Whether the checkpoint's position means the same samples in this data; False where that cannot be told.

    Raises:
        DataError: it does not; says what has changed.
    """
    if step is None:
        return False
    try:
        state = read_state(run.step(step)).loader_state()
        hashes = [read_manifest(source.path).manifest_hash for source in data.train]
    except MegatrainError:
        return False
    changes_since(state, identity(data, seed, hashes))
    return True


def _is_same_tokenizer(run: RunDir, before: str | None, now: str | None) -> bool:
    """Whether another path holds the run's tokenizer. Where nothing tells which that was, whatever is named is."""
    if now is None:
        return True  # the run keeps its own
    expected = kept_tokenizer_sha256(run)
    if expected is None and before is not None:
        with suppress(MegatrainError):
            expected = tokenizer_sha256(before)
    try:
        return expected is None or tokenizer_sha256(now) == expected
    except MegatrainError as error:
        raise type(error)(f"tokenizer.path: {error}") from None


def _is_same_base(run: RunDir, before: str, now: str) -> bool:
    """Whether another path holds the weights that the run started from; with checkpoints, it needs them no more."""
    if Path(before).resolve() == Path(now).resolve() or (run.steps() and not Path(now).exists()):
        return True
    try:
        return is_same_base(run, now)
    except MegatrainError as error:
        text = f"was started with {before!r}, which it needs no more: leave that as it is."
        raise ConfigError(f"finetune.base: {now!r}: cannot be compared ({error}). {run} {text}") from None


def started(run: RunDir) -> bool:
    """Whether the folder holds anything that a new run would mix with."""
    return bool(run.steps()) or (run.metrics.is_file() and run.metrics.stat().st_size > 0)


def is_finetune(config: Config) -> bool:
    return isinstance(config, FinetuneConfig)


def _few(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[-5:])) or "none"
    return f"…, {shown}" if len(steps) > 5 else shown
