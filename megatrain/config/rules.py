"""Rules that hold between the fields of a run; what holds for one field alone is in `config`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from megatrain.base.arithmetic import nearest_divisor
from megatrain.base.progress import Progress
from megatrain.config import AUTO, Config, DataSection, FinetuneConfig, ModelSection, ParallelSection, PretrainConfig
from megatrain.config.batch_size_warmup import warmup_stage_issues
from megatrain.config.evaluation import REPORTED_AS
from megatrain.config.regularization import regularization_issues
from megatrain.config.trained import base_issues, part_issues
from megatrain.config.validation_sets import field_of_set, metric_of_set
from megatrain.model.class_table import has_class_head
from megatrain.model.family import FAMILIES
from megatrain.optim.registry import OPTIMIZERS
from megatrain.schedule.registry import SCHEDULES
from megatrain.tasks.registry import TASKS
from megatrain.tasks.sft.section import SFTSection


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
            f"Try {nearest_divisor(training.global_batch_size, training.micro_batch_size)}.",
        )
    yield from (ConfigIssue(*issue) for issue in warmup_stage_issues(training))
    yield from (ConfigIssue(*issue) for issue in part_issues(config))
    if model is not None:
        yield from validate_model(model, parallel)
        yield from task_issues(config, model)
    if parallel.offload_optimizer == "cpu" and OPTIMIZERS.get(config.optimizer.name).matrices is not None:
        rule = f"{config.optimizer.name} multiplies whole matrices in each update, which a host is too slow for"
        yield ConfigIssue("parallel.offload_optimizer", "cpu", rule, "Set it to none, or take another optimizer.")
    if parallel.offload_optimizer == "cpu" and OPTIMIZERS.get(config.optimizer.name).factored is not None:
        rule = f"{config.optimizer.name} adds up sums of all ranks in each update, over links that a host has none of"
        yield ConfigIssue("parallel.offload_optimizer", "cpu", rule, "Set it to none, or take another optimizer.")
    yield from _generation_issues(config)
    if isinstance(config, PretrainConfig):
        yield from _data_issues(config.data)
        yield from _continued_issues(config)
        if config.data.sequential and config.tokenizer is None:
            yield ConfigIssue("tokenizer", None, "webdataset sources hold text", "Add `tokenizer: {path: …}` for them.")
    if training.steps is not None and (issue := warmup_issue(config)):
        yield issue


def _generation_issues(config: Config) -> Iterator[ConfigIssue]:
    if (section := config.evaluation.generate) is None:
        return
    given = section.model_dump(mode="json")
    if not isinstance(config, FinetuneConfig) or not isinstance(config.task, SFTSection):
        rule = f"is of task sft, whose examples have a response, and task.name is {config.task.name}"
        yield ConfigIssue("evaluation.generate", given, rule, "Leave it out.")
    elif not config.finetune.validation:
        rule = "needs finetune.validation: its prompts are answered"
        yield ConfigIssue("evaluation.generate", given, rule, "Name files of examples there.")


def task_issues(config: Config, model: ModelSection) -> Iterator[ConfigIssue]:
    """What a task, and a model, say of the rest of a run."""
    spec = TASKS.get(config.task.name)
    if spec.attention != "any" and model.is_causal != (spec.attention == "causal"):
        fitting = [name for name, family in FAMILIES if family.section.is_causal == (spec.attention == "causal")]
        kind = "causal" if model.is_causal else "bidirectional"
        rule = f"trains {spec.attention} models, and model.family {model.family} is {kind}"
        yield ConfigIssue("task.name", config.task.name, rule, f"Families for it: {', '.join(fitting) or 'none'}.")
    if model.num_labels is not None and model.num_labels != config.task.num_labels:
        rule = f"is what a task that trains a classifier says, and task.name is {config.task.name}"
        if config.task.num_labels is not None:
            rule = f"is not the number of task.labels ({config.task.num_labels})"
        yield ConfigIssue("model.num_labels", model.num_labels, rule, "Leave it out.")
    if model.num_labels is not None and isinstance(model.vocab_size, int) and not has_class_head(model):
        rule = "has no head of classes: its parameter table has no head.weight of model.padded_labels rows"
        yield ConfigIssue("model.family", model.family, rule, "Take a base of another family, or give it one.")
    for field, value, rule, fix in (*spec.issues(config), *FAMILIES.get(model.family).run_issues(config, model)):
        yield ConfigIssue(field, value, rule, fix)
    if model.mup is not None and not OPTIMIZERS.get(config.optimizer.name).has_mup_rates:
        known = ", ".join(name for name, optimizer in OPTIMIZERS if optimizer.has_mup_rates)
        rule = "has no learning rates of model.mup: they are those of Adam"
        yield ConfigIssue("optimizer.name", config.optimizer.name, rule, f"Take {known}, or leave model.mup out.")
    yield from (ConfigIssue(*issue) for issue in base_issues(config, model))
    yield from (ConfigIssue(*issue) for issue in regularization_issues(config, model))
    yield from _early_stopping_issues(config)
    longest = model.longest_sequence
    if longest is None:
        return
    name = "data.sequence_length" if isinstance(config, PretrainConfig) else "finetune.sequence_length"
    length = config.data.sequence_length if isinstance(config, PretrainConfig) else config.finetune.sequence_length
    if length is not None and length > longest:
        rule = f"is longer than the model's learned positions ({longest})"
        yield ConfigIssue(name, length, rule, f"At most {longest}.")


def _early_stopping_issues(config: Config) -> Iterator[ConfigIssue]:
    section, name = config.training.early_stopping, "training.early_stopping"
    if section is None:
        return
    part = "data" if isinstance(config, PretrainConfig) else "finetune"
    sets = config.data.validation_sets if isinstance(config, PretrainConfig) else config.finetune.validation_sets
    if not sets:
        yield ConfigIssue(name, section.metric, f"needs {part}.validation: what an evaluation reads", "Give it some.")
    of_task = TASKS.get(config.task.name).metrics(config.task)
    generate = config.evaluation.generate
    more = [one for metric in generate.metrics for one in REPORTED_AS[metric]] if generate else []
    known = [metric_of_set(one, metric) for one in sets or ("",) for metric in (*of_task, *more)]
    if of_task and section.metric not in known:
        shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        yield ConfigIssue(f"{name}.metric", section.metric, "is not measured by this task", f"There are: {shown}.")


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
    if not SCHEDULES.get(schedule.name).ends or schedule.warmup_steps <= max(steps, progress.step):
        return None
    length = f"training.steps is {steps:,}" if training.tokens is None else f"training.tokens come to {steps:,} steps"
    fix = f"Try {max(1, steps // 20)}."
    return ConfigIssue("schedule.warmup_steps", schedule.warmup_steps, f"is longer than the run ({length})", fix)


def validate_model(model: ModelSection, parallel: ParallelSection) -> Iterator[ConfigIssue]:
    """Rules between the sizes of a model, and between them and the ranks that share it."""
    family = FAMILIES.get(model.family)
    for field, value, rule, fix in family.issues(model):
        yield ConfigIssue(f"model.{field}", value, rule, fix)
    if model.mup is not None and not family.has_mup:
        fitting = ", ".join(name for name, one in FAMILIES if one.has_mup)
        rule = f"model.family {model.family} has no maximal update parametrisation"
        yield ConfigIssue("model.mup", model.mup.model_dump(), rule, f"Families that do: {fitting}.")
    tensor, context = parallel.tensor_parallel, parallel.context_parallel
    heads = model.key_value_heads
    if family.whole:
        for name, size in (("tensor_parallel", tensor), ("context_parallel", context)):
            if size not in (AUTO, 1):
                yield ConfigIssue(f"parallel.{name}", size, family.whole, "Set it to 1: ZeRO-3 divides any weights.")
        return
    if isinstance(tensor, int):
        broken = next((one for one in family.divisible(model) if one.number % tensor), None)
        if broken is not None:
            where = f" (model.{broken.field})" if broken.words else ""
            fix = f"Try {nearest_divisor(broken.number, tensor)}."
            yield ConfigIssue("parallel.tensor_parallel", tensor, f"does not divide {broken}{where}", fix)
        if isinstance(model.vocab_size, int) and model.vocab_size % tensor:
            rule = f"does not divide model.vocab_size ({model.vocab_size})"
            yield ConfigIssue("parallel.tensor_parallel", tensor, rule)
        if model.padded_labels % tensor:
            rule = f"does not divide the {model.padded_labels} rows of the class head"
            fix = f"Try {nearest_divisor(model.padded_labels, tensor)}."
            yield ConfigIssue("parallel.tensor_parallel", tensor, rule, fix)
    if isinstance(context, int) and heads % context:
        rule = f"does not divide {heads} key-value heads (model.num_key_value_heads)"
        yield ConfigIssue("parallel.context_parallel", context, rule, f"Try {nearest_divisor(heads, context)}.")


def _continued_issues(config: PretrainConfig) -> Iterator[ConfigIssue]:
    replay = config.continued.replay if config.continued is not None else 0.0
    name = "phases" if config.data.phases else "webdataset sources" if config.data.sequential else ""
    if replay and name:
        rule = f"cannot be mixed into data.{name}" if config.data.phases else f"cannot be mixed into {name}"
        yield ConfigIssue(
            "continued.replay", replay, rule, "Name the base's sources in data.train by hand, or set it to 0."
        )


def _data_issues(data: DataSection) -> Iterator[ConfigIssue]:
    weights = [source.weight for source in data.train]
    if not any(weights) and not (data.phases and data.phases[0].from_sample == 0 and data.phases[0].weights):
        yield ConfigIssue("data.train", weights, "every source has weight 0", "Give one of them a positive weight.")
    before = -1
    for number, phase in enumerate(data.phases):
        name = f"data.phases.{number}"
        if phase.from_sample <= before:
            rule = f"is not after the phase before it ({before})"
            yield ConfigIssue(
                f"{name}.from_sample", phase.from_sample, rule, "Phases stand in the order of their samples."
            )
        before = phase.from_sample
        if phase.weights is not None and (len(phase.weights) != len(data.train) or not any(phase.weights)):
            rule = f"must be {len(data.train)} weights, one for each source of data.train, not all 0"
            yield ConfigIssue(f"{name}.weights", phase.weights, rule)
        if phase.sequence_length is not None and data.sequence_length % phase.sequence_length:
            yield ConfigIssue(
                f"{name}.sequence_length",
                phase.sequence_length,
                f"does not divide data.sequence_length ({data.sequence_length})",
                f"Try {nearest_divisor(data.sequence_length, phase.sequence_length)}.",
            )
    paths = [source.path.rstrip("/") for source in data.train]
    for number, damaged in enumerate(data.quarantine):
        if damaged.path.rstrip("/") not in paths:
            rule = f"is not a source of data.train ({', '.join(paths)})"
            yield ConfigIssue(f"data.quarantine.{number}.path", damaged.path, rule)
    yield from _format_issues(data)


def _format_issues(data: DataSection) -> Iterator[ConfigIssue]:
    for name, sources in data.validation_sets.items():
        for number, source in enumerate(sources):
            if source.format != "prepared":
                field = f"{field_of_set('data', name)}.{number}.format"
                yield ConfigIssue(field, source.format, "validation data must be prepared")
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
    for field in ("phases", "quarantine", "transform"):
        if getattr(data, field):
            yield ConfigIssue(f"data.{field}", None, "needs prepared data", "webdataset sources are read as they come.")
