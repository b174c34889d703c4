"""Rules of what disturbs a training, and what that adds to its passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatrain.config.runs import Config, FinetuneConfig
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES
from megatrain.optim.registry import OPTIMIZERS
from megatrain.tasks.registry import TASKS

Issue = tuple[str, Any, str, str]  # field, value, rule, fix


@dataclass(frozen=True, slots=True)
class Passes:
    """What regularisation adds to the passes of a micro-batch.

    Attributes:
        dropout: whether blocks draw random numbers.
        accumulated: how often gradients of a micro-batch are added up.
        computed: how often it goes forward and backward.
        copies: of its rows, that go through the model as one batch.
    """

    dropout: bool = False
    accumulated: int = 1
    computed: int = 1
    copies: int = 1


def passes_of(config: Config) -> Passes:
    finetune = config.finetune if isinstance(config, FinetuneConfig) else None
    adversarial = finetune.adversarial if finetune else None
    return Passes(
        dropout=config.training.dropout > 0,
        accumulated=1 if adversarial is None else 2,
        computed=1 if adversarial is None else 1 + adversarial.ascents,
        copies=2 if finetune and finetune.r_drop else 1,
    )


def _adversarial_issues(config: FinetuneConfig) -> Iterator[Issue]:
    section = config.finetune.adversarial
    if section is None:
        return
    name, given = "finetune.adversarial", section.model_dump(mode="json", exclude_defaults=True)
    for field in ("steps", "step_size"):
        if section.method == "fgm" and getattr(section, field) is not None:
            yield f"{name}.{field}", getattr(section, field), "is of method pgd, and method is fgm", "Leave it out."
    if section.method == "pgd" and section.ascent_size > section.epsilon:
        rule = f"is more than the whole perturbation may be: epsilon is {section.epsilon:g}"
        yield f"{name}.step_size", section.step_size, rule, f"Try {0.3 * section.epsilon:g}."
    if config.finetune.train_layers is not None:
        rule = "perturbs what the first layer sees, and finetune.train_layers has no backward pass down to there"
        yield name, given, rule, "Leave one of the two out; an adapter works."
    if config.task.name == "preference":
        yield name, given, "is of one example by itself, and task preference compares two answers", "Leave it out."


def _r_drop_issues(config: FinetuneConfig) -> Iterator[Issue]:
    alpha, name, spec = config.finetune.r_drop, "finetune.r_drop", TASKS.get(config.task.name)
    if not alpha:
        return
    if not spec.has_r_drop(config.task):
        rule = (
            f"compares what two passes say of labels, of which one is right; task {config.task.name} has no such loss"
        )
        fix = (
            "Leave it out; it is of sequence_classification (single_label), token_classification, relation_extraction."
        )
        yield name, alpha, rule, fix
    if not (config.training.dropout or config.training.embedding_dropout):
        rule = "compares two passes that dropout makes differ, and there is none"
        yield name, alpha, rule, "Set training.dropout, such as 0.1."
    if config.finetune.adversarial is not None:
        rule = "is not supported with finetune.adversarial: their passes would be of each other's"
        yield name, alpha, rule, "Leave one of the two out."


def _start_issues(config: Config) -> Iterator[Issue]:
    """Of decay toward the start."""
    name = config.optimizer.name
    if not OPTIMIZERS.get(name).start_state:
        return
    if not isinstance(config, FinetuneConfig):
        rule = "decays toward the weights that a fine-tuning starts from, and pretraining starts from random ones"
        yield "optimizer.name", name, rule, "Take adamw."
    elif config.finetune.adapter is not None:
        rule = "decays toward the weights of the base, which finetune.adapter leaves as they are"
        yield "optimizer.name", name, rule, "Take adamw."


def regularization_issues(config: Config, model: ModelSection) -> Iterator[Issue]:
    """What depends on the model that is trained."""
    training = config.training
    yield from _start_issues(config)
    if isinstance(config, FinetuneConfig):
        yield from _adversarial_issues(config)
        yield from _r_drop_issues(config)
    if training.dropout and not FAMILIES.get(model.family).residual:
        fitting = ", ".join(name for name, family in FAMILIES if family.residual)
        rule = f"model.family {model.family} does not say which layers add to its residual stream"
        yield "training.dropout", training.dropout, rule, f"Families that do: {fitting}."
