"""Everything about a run that can be known before a GPU is held. All findings at once, errors apart from warnings."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.planning.hardware import GIB
from launcher.planning.matrices import checkpoint_bytes
from launcher.planning.plan import make_plan, resolve
from launcher.planning.plan_result import Plan, PlanResult
from launcher.planning.reliability import reliability
from launcher.planning.resolve import complete_model, run_folder, tokenizer_path
from launcher.planning.run_time import run_seconds
from launcher.preflight.base_model import check_base
from launcher.preflight.changes import check_changes, progress_at_start
from launcher.preflight.continued import check_continued
from launcher.preflight.data_plan import plan_data
from launcher.preflight.finding import Finding
from launcher.preflight.host_memory import check_host_memory
from launcher.preflight.on_disk import (
    check_checkpoint,
    check_files,
    check_padding,
    check_task_tokenizer,
    check_tokenizer,
    check_vocabulary,
)
from launcher.preflight.own_copies import check_own_copies
from launcher.preflight.precision import check_precision
from launcher.preflight.same_data import check_same
from launcher.preflight.text_metrics import check_text_metrics
from launcher.runs.prepare import check_branch, check_resume, check_same_run
from megatrain.base.errors import DataError, ExitCode, MegatrainError, PreflightError
from megatrain.base.progress import Progress
from megatrain.checkpoint.progress import start_progress
from megatrain.checkpoint.rewind import leftover_bytes
from megatrain.config import AUTO, Config, FinetuneConfig, PretrainConfig
from megatrain.config.validation_sets import field_of_set
from megatrain.data.folder.manifest import Manifest, read_manifest
from megatrain.run.branch import origin
from megatrain.run.directory import RunDir


class PreflightFailedError(PreflightError):
    """All errors together; ends with the code of the first."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        errors = [finding for finding in findings if finding.level == "error"]
        super().__init__("\n".join(finding.text for finding in errors))
        self.exit_code = errors[0].code


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """All that was found about one run. `result` is None where no layout is legal and fits."""

    config: Config
    result: PlanResult | None
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    @property
    def notes(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "note"]

    def demand(self) -> PlanResult:
        """The plan; raises PreflightFailedError, with every error, when there is one."""
        if self.errors:
            raise PreflightFailedError(self.errors)
        assert self.result is not None, "else there is an error"
        return self.result

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": not self.errors,
            "errors": [finding.text for finding in self.errors],
            "warnings": [finding.text for finding in self.warnings],
            "notes": [finding.text for finding in self.notes],
            "plan": self.result.chosen.to_json() if self.result else None,
        }


def examine(config: Config, *, world_size: int | None = None, resume: str = "auto", as_job: bool = False) -> Preflight:
    """Plan the run and check everything about starting it now; whatever one check finds, the others are made as well.

    Args:
        world_size: ranks, on one machine; default: the cluster's.
        as_job: it will be a Slurm job; see also `commands.test_only`.
    """
    findings: list[Finding] = []
    result: PlanResult | None = None
    try:
        result = make_plan(config, world_size=world_size)
    except MegatrainError as error:
        findings += _each(error)
    findings += check(config, result.chosen if result else None, resume=resume, as_job=as_job)
    unique = list({finding.text: finding for finding in findings}.values())
    return Preflight(config=config, result=result, findings=unique)


def check(config: Config, plan: Plan | None, *, resume: str = "auto", as_job: bool = True) -> list[Finding]:
    """Every finding about starting this run now. A plan has already settled batch arithmetic, layout and memory.

    Without a plan, what only it could answer is dropped.
    """
    findings: list[Finding] = []
    run = run_folder(config)
    findings += _caught(lambda: check_resume(run, resume))
    resolved = config
    try:
        resolved = resolve(config, plan) if plan else complete_model(config)
    except MegatrainError as error:
        findings += _each(error)
    if plan:
        findings += _caught(lambda: check_same_run(run, resolved))
        findings += _caught(lambda: check_branch(run, resolved, resume))
        findings += check_changes(resolved, run, resume)
    findings += check_precision(config)
    findings += check_text_metrics(config)
    findings += _disk(resolved, run.path)
    progress = progress_at_start(resolved, run, resume)
    findings += _data(resolved, progress) if isinstance(resolved, PretrainConfig) else _finetune(resolved)
    findings += check_own_copies(resolved, run)
    source, branched = origin(run, resolved)
    findings += check_padding(resolved, source)
    findings += check_checkpoint(resolved, source, resume if branched is None else str(branched))
    if as_job and plan:
        findings += _time(resolved, plan)
        findings += check_host_memory(resolved, plan)
    return findings


def demand(findings: list[Finding]) -> list[Finding]:
    """The warnings; raises PreflightFailedError when there are errors."""
    if any(finding.level == "error" for finding in findings):
        raise PreflightFailedError(findings)
    return findings


def _caught(probe: Callable[[], None]) -> list[Finding]:
    try:
        probe()
    except MegatrainError as error:
        return [_from(error)]
    return []


def _disk(config: Config, folder: Path) -> Iterator[Finding]:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("error", f"run.directory: {folder}: cannot be written (no permission in {existing}).")
        return
    if config.model is None or config.model.vocab_size == AUTO:
        return  # another finding says why it could not be completed
    each = checkpoint_bytes(config.model, config.optimizer)
    wanted = each * (config.checkpoint.keep_last + (1 if config.training.early_stopping is None else 2))
    free = shutil.disk_usage(existing).free + leftover_bytes(RunDir(folder))  # those go when the run starts
    if wanted > free:
        yield Finding(
            "error" if 2 * each > free else "warning",
            f"checkpoint.keep_last: {config.checkpoint.keep_last}: with the one being written, checkpoints take "
            f"{_size(wanted)} ({_size(each)} each), and {existing} has {_size(free)} free. "
            "Keep fewer, or set run.directory to a larger disk.",
        )


def _size(number: float) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= 0.1 * GIB else f"{number / 2**20:,.1f} MiB"


def _data(config: PretrainConfig, progress: Progress) -> Iterator[Finding]:
    yield from check_continued(config)
    manifests: list[Manifest] = []
    usable: list[Manifest] = []  # of training sources
    contents: dict[str, list[tuple[str, str, str]]] = {"train": [], "validation": []}
    sets = {field_of_set("data", name): sources for name, sources in config.data.validation_sets.items()}
    for field, sources in ({"data.train": config.data.train} | sets).items():
        part = "train" if field == "data.train" else "validation"
        for index, source in enumerate(sources):
            if source.format == "webdataset":
                text = "is read in sequence: the run can only resume with the ranks it starts with. Prepare it."
                yield Finding("warning", f"{field}.{index}: {source.path}: {text}")
                continue
            try:
                manifest = read_manifest(source.path)
                rows = manifest.rows(config.sequence_length)
            except DataError as error:
                yield _from(error, f"{field}.{index}: ")
                continue
            manifests.append(manifest)
            contents[part].append((f"{field}.{index}", source.path, manifest.manifest_hash))
            yield from check_files(f"{field}.{index}", source.path, manifest)
            if not rows:
                text = f"holds {manifest.tokens:,} tokens: not one sequence of {config.sequence_length}."
                yield Finding("error", f"{field}.{index}: {source.path}: {text}", ExitCode.DATA)
            elif part == "train":
                usable.append(manifest)
    yield from check_same(**contents)
    if len(usable) == len(config.data.train):
        yield from _repetition(config, usable, progress)
    yield from _vocabulary(config, manifests)


def _repetition(config: PretrainConfig, manifests: list[Manifest], progress: Progress) -> Iterator[Finding]:
    try:
        plan = plan_data(config, manifests, progress)
    except DataError as error:
        yield _from(error)
        return
    yield from (Finding("error", text, ExitCode.DATA) for text in plan.refusals())
    yield from (Finding("warning", text) for text in plan.warnings())


def _vocabulary(config: PretrainConfig, manifests: list[Manifest]) -> Iterator[Finding]:
    largest = max((manifest.vocab_size for manifest in manifests), default=0)
    if config.model.vocab_size != AUTO and largest > config.model.padded_vocab_size:
        yield Finding(
            "error",
            f"model.vocab_size: {config.model.vocab_size}: the data holds ids up to {largest - 1}. Set it to auto.",
            ExitCode.USAGE,
        )
    if len({manifest.tokenizer_sha256 for manifest in manifests}) > 1:
        yield Finding(
            "error",
            "data: the sources were prepared with different tokenizers. Prepare them again with one of them.",
            ExitCode.DATA,
        )
    elif (path := tokenizer_path(config)) is not None:
        if manifests:
            yield from check_tokenizer(path, manifests[0].tokenizer_sha256)
        elif config.data.sequential:  # texts that are tokenised as they are read
            yield from check_vocabulary(path, config.model)
        yield from check_task_tokenizer(config.task, path)


def _finetune(config: FinetuneConfig) -> Iterator[Finding]:
    from launcher.preflight.examples import check_examples  # numpy and tokenizers take a while

    of_base = list(check_base(config))
    yield from of_base
    told = any(one.level == "error" and one.text.startswith("tokenizer.path") for one in of_base)
    yield from check_examples(config, tokenizer_told=told)


def _time(config: Config, plan: Plan) -> Iterator[Finding]:
    """A job is requeued until the run is done, so a short walltime only has to hold a checkpoint or two."""
    slurm = config.slurm
    useful = slurm_seconds(slurm.time) - slurm.signal_before_limit_seconds
    assert config.model is not None, "resolved"
    saving = reliability(config.model, config.optimizer, config.cluster, config.cluster.nodes).checkpoint_seconds
    if useful <= 0:
        yield Finding(
            "error",
            f"slurm.signal_before_limit_seconds: {slurm.signal_before_limit_seconds}: "
            f"leaves nothing of slurm.time ({slurm.time}). "
            "Make it shorter, or the time longer.",
            ExitCode.USAGE,
        )
    elif useful < 10 * plan.step_seconds:
        yield Finding("warning", f"slurm.time: {slurm.time}: holds fewer than 10 planned steps.")
    if (
        slurm.signal_before_limit_seconds < 3 * plan.step_seconds + saving
    ):  # two steps are ended after the one it comes in
        yield Finding(
            "warning",
            f"slurm.signal_before_limit_seconds: {slurm.signal_before_limit_seconds}: a step is planned to take "
            f"{plan.step_seconds:.0f} s and a checkpoint {saving:.0f} s (cluster.storage_gbps), and up to three steps "
            "end before the checkpoint. Make it longer, "
            "or the end of a job may lose work.",
        )
    if config.monitor.hang_timeout_seconds < 2 * (plan.step_seconds + saving):
        yield Finding(
            "warning",
            f"monitor.hang_timeout_seconds: {config.monitor.hang_timeout_seconds}: a step is planned to take "
            f"{plan.step_seconds:.0f} s and a checkpoint {saving:.0f} s (cluster.storage_gbps). Make it longer, "
            "or the watchdog may end a run that is well.",
        )


def jobs_needed(config: Config, plan: Plan) -> int:
    """How many walltimes the rest of the run is planned to take; `config` is resolved."""
    progress = start_progress(run_folder(config), config)
    useful = slurm_seconds(config.slurm.time) - config.slurm.signal_before_limit_seconds
    return max(1, math.ceil(run_seconds(config, plan, progress) / max(1, useful)))


def slurm_seconds(text: str) -> int:
    """Seconds of a Slurm time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = parts + [0] * (3 - len(parts))
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, parts + [0] * (2 - len(parts))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _each(error: MegatrainError) -> list[Finding]:
    """Of data, each line is a mistake of its own."""
    lines = str(error).splitlines() if isinstance(error, DataError) else [str(error)]
    return [Finding("error", line, error.exit_code) for line in lines]


def _from(error: MegatrainError, prefix: str = "") -> Finding:
    return Finding("error", f"{prefix}{error}", error.exit_code)
