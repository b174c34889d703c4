"""Rules that hold between the fields of a run; what holds for one field alone is in `config`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from megatrain.base.progress import Progress
from megatrain.config import Config, DataSection, FinetuneConfig, ModelSection, ParallelSection, PretrainConfig


class ConfigIssue(NamedTuple):
    """One mistake: where, what stood there, the rule it breaks, and what to do."""

    field: str
    value: Any
    rule: str
    fix: str = ""


def validate(config: Config) -> Iterator[ConfigIssue]:
    """Rules that hold between fields. A rule whose fields are still "auto" is the planner's to keep."""
    model, training, parallel = config.model, config.training, config.parallel
    given = {name: getattr(training, name) for name in ("tokens", "steps", "epochs")}
    given = {name: length for name, length in given.items() if length is not None}
    if len(given) != 1:
        lengths = "tokens and steps" if isinstance(config, PretrainConfig) else "tokens, steps and epochs"
        yield ConfigIssue("training", given or None, f"give exactly one of {lengths}", "The rest follows from it.")
    if training.epochs is not None and isinstance(config, PretrainConfig):
        fix = "Give tokens: sources of a mixture are read at their own rates."
        yield ConfigIssue("training.epochs", training.epochs, "is the length of a fine-tuning", fix)
    if isinstance(training.micro_batch_size, int) and training.global_batch_size % training.micro_batch_size:
        yield ConfigIssue(
            "training.micro_batch_size",
            training.micro_batch_size,
            f"does not divide training.global_batch_size ({training.global_batch_size})",
            f"Try {_nearest_divisor(training.global_batch_size, training.micro_batch_size)}.",
        )
    if model is not None:
        yield from validate_model(model, parallel)
    if isinstance(config, PretrainConfig):
        yield from _data_problems(config.data)
        if config.data.sequential and config.tokenizer is None:
            yield ConfigIssue("tokenizer", None, "webdataset sources hold text", "Add `tokenizer: {path: …}` for them.")
    if training.steps is not None and (problem := warmup_issue(config)):
        yield problem


def warmup_issue(config: Config, progress: Progress | None = None) -> ConfigIssue | None:
    """A warm-up that would not end.

    Of a run given in tokens, `validate` does not ask: how many steps those are depends on the batch sizes so far.

    Args:
        progress: where the run stands; default: at its start. A warm-up that is over by then may be of any length.
    """
    training, schedule, progress = config.training, config.schedule, progress or Progress()
    if isinstance(config, FinetuneConfig) and config.finetune.sequence_length is None and training.steps is None:
        return None  # the base says how long
    if training.steps is None and training.tokens is None:
        return None
    steps = progress.step + config.steps_left(progress)
    if schedule.name == "constant" or schedule.warmup_steps <= max(steps, progress.step):
        return None
    length = f"training.steps is {steps:,}" if training.tokens is None else f"training.tokens come to {steps:,} steps"
    fix = f"Try {max(1, steps // 20)}."
    return ConfigIssue("schedule.warmup_steps", schedule.warmup_steps, f"is longer than the run ({length})", fix)


def validate_model(model: ModelSection, parallel: ParallelSection) -> Iterator[ConfigIssue]:
    """Rules between the sizes of a model, and between them and the ranks that share it."""
    heads, kv = model.num_attention_heads, model.key_value_heads
    if model.head_dim is None and model.hidden_size % heads:
        yield ConfigIssue(
            "model.num_attention_heads",
            heads,
            f"does not divide model.hidden_size ({model.hidden_size})",
            f"Try {_nearest_divisor(model.hidden_size, heads)}, or set model.head_dim.",
        )
    elif model.head_size % 2:
        yield ConfigIssue("model.head_dim", model.head_size, "must be even: rotary embeddings turn pairs of channels")
    if model.rope_scaling and model.rope_scaling.high_freq_factor <= model.rope_scaling.low_freq_factor:
        yield ConfigIssue(
            "model.rope_scaling.high_freq_factor",
            model.rope_scaling.high_freq_factor,
            f"must be more than low_freq_factor ({model.rope_scaling.low_freq_factor})",
        )
    if heads % kv:
        yield ConfigIssue(
            "model.num_key_value_heads",
            kv,
            f"does not divide model.num_attention_heads ({heads})",
            f"Try {_nearest_divisor(heads, kv)}.",
        )
    for name in ("tensor_parallel", "context_parallel"):
        ranks = getattr(parallel, name)
        if isinstance(ranks, int) and kv % ranks:
            yield ConfigIssue(
                f"parallel.{name}",
                ranks,
                f"does not divide {kv} key-value heads (model.num_key_value_heads)",
                f"Try {_nearest_divisor(kv, ranks)}.",
            )
    tensor = parallel.tensor_parallel
    if isinstance(tensor, int) and model.intermediate_size % tensor:
        yield ConfigIssue(
            "parallel.tensor_parallel", tensor, f"does not divide model.intermediate_size ({model.intermediate_size})"
        )
    if isinstance(tensor, int) and isinstance(model.vocab_size, int) and model.vocab_size % tensor:
        yield ConfigIssue("parallel.tensor_parallel", tensor, f"does not divide model.vocab_size ({model.vocab_size})")


def _data_problems(data: DataSection) -> Iterator[ConfigIssue]:
    weights = [source.weight for source in data.train]
    if not any(weights) and not (data.stages and data.stages[0].from_sample == 0 and data.stages[0].weights):
        yield ConfigIssue("data.train", weights, "every source has weight 0", "Give one of them a positive weight.")
    before = -1
    for number, stage in enumerate(data.stages):
        name = f"data.stages.{number}"
        if stage.from_sample <= before:
            rule = f"is not after the stage before it ({before})"
            yield ConfigIssue(
                f"{name}.from_sample", stage.from_sample, rule, "Stages stand in the order of their samples."
            )
        before = stage.from_sample
        if stage.weights is not None and (len(stage.weights) != len(data.train) or not any(stage.weights)):
            rule = f"must be {len(data.train)} weights, one for each source of data.train, not all 0"
            yield ConfigIssue(f"{name}.weights", stage.weights, rule)
        if stage.sequence_length is not None and data.sequence_length % stage.sequence_length:
            yield ConfigIssue(
                f"{name}.sequence_length",
                stage.sequence_length,
                f"does not divide data.sequence_length ({data.sequence_length})",
                f"Try {_nearest_divisor(data.sequence_length, stage.sequence_length)}.",
            )
    paths = [source.path.rstrip("/") for source in data.train]
    for number, damaged in enumerate(data.quarantine):
        if damaged.path.rstrip("/") not in paths:
            rule = f"is not a source of data.train ({', '.join(paths)})"
            yield ConfigIssue(f"data.quarantine.{number}.path", damaged.path, rule)
    yield from _format_problems(data)


def _format_problems(data: DataSection) -> Iterator[ConfigIssue]:
    for number, source in enumerate(data.validation):
        if source.format != "prepared":
            yield ConfigIssue(f"data.validation.{number}.format", source.format, "validation data must be prepared")
    if not data.sequential:
        return
    for number, source in enumerate(data.train):
        if source.format != "webdataset":
            rule = "prepared and webdataset sources cannot be mixed"
            yield ConfigIssue(f"data.train.{number}.format", source.format, rule, "Prepare the webdataset ones, too.")
        if source.path.startswith("pipe:") and not data.allow_pipe:
            rule = "runs a command in a shell, which data.allow_pipe does not allow"
            yield ConfigIssue(
                f"data.train.{number}.path", source.path, rule, "If you trust it, set data.allow_pipe: true."
            )
    for field in ("stages", "quarantine", "transform"):
        if getattr(data, field):
            yield ConfigIssue(f"data.{field}", None, "needs prepared data", "webdataset sources are read as they come.")


def _nearest_divisor(number: int, wanted: int) -> int:
    """Near the wanted one, as far as is worth looking; else 1."""
    near = range(max(1, wanted - 10_000), min(number, wanted + 10_000) + 1)
    return min((d for d in near if number % d == 0), key=lambda d: (abs(d - wanted), d), default=1)
