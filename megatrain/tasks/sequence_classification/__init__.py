"""Sequence classification: one label, several labels, or a number for each text, on causal models and encoders."""

from collections.abc import Iterator
from typing import Any

from megatrain.tasks.class_names import class_metrics
from megatrain.tasks.class_weights import weight_issues
from megatrain.tasks.labels import repeated
from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    section: SequenceClassificationSection = config.task
    yield from repeated(config)
    yield from weight_issues(section.class_weights, section.labels)
    fix = f"Leave it out: task.problem is {section.problem}."
    if section.problem != "single_label":
        if section.class_weights is not None:
            yield "task.class_weights", section.class_weights, "is of task.problem: single_label", fix
        if section.label_smoothing:
            yield "task.label_smoothing", section.label_smoothing, "is of task.problem: single_label", fix
    if section.problem == "regression" and section.labels is not None:
        yield "task.labels", list(section.labels), "are of a classifier: a regression has none", fix
    if section.end_token and config.model is not None and not config.model.is_causal:
        rule = f"is of causal models, and model.family {config.model.family} is an encoder"
        yield "task.end_token", True, rule, "Leave it out: an encoder's label is at the first token."


def _metrics(section: SequenceClassificationSection) -> tuple[str, ...]:
    if section.problem == "regression":
        return ("validation_loss", "mse", "mae", "pearson", "spearman")
    if section.labels is None:
        return ()  # the examples say what is reported of each label
    of_all = ("validation_loss", "accuracy", "macro_f1", *(("micro_f1",) if section.problem == "multi_label" else ()))
    return (*of_all, *class_metrics(section.labels))


TASKS.register(
    "sequence_classification",
    TaskSpec(
        section=SequenceClassificationSection,
        task="megatrain.tasks.sequence_classification.task:SequenceClassification",
        trains="finetune",
        read_examples="megatrain.data.examples.classification:read_classified",
        check_rows="megatrain.data.examples.labelled_text:check_rows",
        complete="megatrain.data.examples.labelled_text:with_labels",
        attention="any",
        has_r_drop=lambda section: section.problem == "single_label",
        issues=_issues,
        metrics=_metrics,
    ),
)
