"""Plans and findings as text for a terminal."""

from collections import Counter
from collections.abc import Iterator

from launcher.planning.examples import example_set
from launcher.planning.hardware import GIB
from launcher.planning.plan_result import Plan, PlanResult
from launcher.planning.reliability import reliability
from launcher.planning.resolve import run_folder, tokenizer_path
from launcher.planning.run_time import run_seconds
from megatrain.base.errors import MegatrainError
from megatrain.base.formatting import duration, gib, quantity
from megatrain.checkpoint.progress import saved_progress, start_progress
from megatrain.config import Config, FinetuneConfig
from megatrain.config.step_sizes import steps_in_words

SHOWN_CANDIDATES = 5
_ROUGH = (
    "planned roughly: the model is transformers' own code, of which only sizes are known. Leave memory free, and "
    "look at what a short run takes."
)


def headline(config: Config, plan: Plan) -> str:
    """Two lines: what runs, and what is planned of it. `config` is resolved."""
    model, cluster = config.model, config.cluster
    assert model is not None, "resolved"
    unit = "tokens (padding counted)" if isinstance(config, FinetuneConfig) else "tokens"
    compiled = "compile, " if config.parallel.compile else ""
    progress = start_progress(run_folder(config), config)
    tokens = config.samples_left(progress) * config.sequence_length
    length = f"{quantity(tokens)} {unit} = {steps_in_words(config, progress)}"
    if progress.step:
        length += f" to go from step {progress.step:,}"
    trained = f", {quantity(model.trained_parameters)} of them trained" if model.freezes else ""
    return (
        f"run {config.run.name} · {cluster.nodes} × {cluster.gpus_per_node} {cluster.hardware} · {plan.layout} · "
        f"{compiled}{config.training.precision}\n"
        f"{quantity(model.parameters)} parameters{trained} · {length} · planned {gib(plan.memory.total)} per rank · "
        f"planned {plan.mfu:.0%} MFU, {duration(run_seconds(config, plan, progress))}"
    )


def plan_text(config: Config, report: PlanResult) -> str:
    """The chosen plan by its parts, the runners-up, and why the others cannot be."""
    chosen = report.chosen
    memory = {
        name: f"{size / GIB:.2f}" for name, size in chosen.memory.to_json().items() if name not in ("total", "host")
    }
    other = {name: f"{size / GIB:.2f}" for name, size in chosen.memory.other_to_json().items()}
    seconds = {name: f"{value * 1e3:.1f}" for name, value in chosen.time.to_json().items() if name != "total"}
    assert config.model is not None, "resolved"
    safety = reliability(config.model, config.optimizer, config.cluster, config.cluster.nodes)
    capacity = report.hardware.memory_bytes / GIB
    per_token = "4·N of what is frozen, 6·N of the rest" if config.model.freezes else "6·N"
    lines = [
        headline(config, chosen),
        *_examples(config),
        *([_ROUGH] if config.model is not None and config.model.plan_is_rough else []),
        "",
        f"memory   {chosen.memory.total / GIB:7.2f} of {capacity:.1f} GiB per rank, "
        f"at the peak ({chosen.memory.peak}): {_parts(memory)} ({_parts(other)})",
        *_host(chosen, report),
        *([f"hpZ      {report.why_hpz}"] if report.why_hpz else []),
        f"step     {chosen.step_seconds * 1e3:7.1f} ms: {_parts(seconds)}",
        *_warmup(config, chosen),
        f"speed    {chosen.tokens_per_second_per_gpu:,.0f} tokens/s per rank, MFU {chosen.mfu:.1%} "
        f"({per_token} + attention per token, over the dense bf16 peak)",
        f"save     every {duration(safety.interval_seconds)} loses least; checkpoints and failures then cost "
        f"{safety.lost:.1%} of the time",
        "",
        f"{len(report.candidates)} layouts fit; the best:",
    ]
    lines += [_candidate(plan) for plan in report.candidates[:SHOWN_CANDIDATES]]
    if report.rejected:
        lines += ["", f"{len(report.rejected)} do not:", *_reasons(report)]
    return "\n".join(lines)


def _host(plan: Plan, report: PlanResult) -> list[str]:
    if not plan.memory.host or report.hardware.host is None:
        return []
    there, layout = report.hardware.host.memory_gib, plan.layout
    held = ["inputs of blocks"] if layout.activation_checkpointing == "offload" else []
    held += ["weights in fp32, optimizer, gradients"] if layout.offload_optimizer == "cpu" else []
    lines = [f"host     {plan.memory.host / GIB:7.2f} of {there:.1f} GiB per rank: {', '.join(held)}"]
    if report.why_offload:
        lines.append(f"         since no layout fits without: the nearest {report.why_offload}")
    return lines


def _warmup(config: Config, plan: Plan) -> Iterator[str]:
    for until, size in config.training.batch_sizes.stages:
        yield f"batch    {size:7,} sequences, {plan.seconds_of(size) * 1e3:.1f} ms, until sample {until:,}"
    if config.training.batch_size_warmup:
        yield f"batch    {config.training.global_batch_size:7,} sequences from there on"


def _examples(config: Config) -> list[str]:
    """What a fine-tuning reads; nothing where that is not there yet, or is not usable: the checks say why."""
    if not isinstance(config, FinetuneConfig):
        return []
    try:
        found = example_set(config, tokenizer_path(config))
    except MegatrainError:
        return []
    return [found.describe(config, saved_progress(run_folder(config)))]


def _candidate(plan: Plan) -> str:
    return (
        f"  {plan.memory.total / GIB:6.1f} GiB {plan.step_seconds * 1e3:9.1f} ms "
        f"{plan.tokens_per_second_per_gpu:10,.0f} tok/s  {plan.layout}"
    )


def _reasons(report: PlanResult) -> list[str]:
    memory = [rejected for rejected in report.rejected if rejected.overshoot < float("inf")]
    others = Counter(rejected.reason for rejected in report.rejected if rejected.overshoot == float("inf"))
    lines = [f"  {reason}" for reason in others]
    if memory:
        nearest = min(memory, key=lambda rejected: rejected.overshoot)
        lines.append(
            f"  {len(memory)} need more memory than there is; the nearest {nearest.reason.removeprefix('needs ')}"
        )
    return lines


def _parts(values: dict[str, str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
