"""Relation extraction: how two marked entities of a text are related, on causal models and encoders."""

from collections.abc import Iterator
from typing import Any

from megatrain.tasks.class_names import class_metrics
from megatrain.tasks.labels import repeated
from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.relation_extraction.section import RelationExtractionSection


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    section: RelationExtractionSection = config.task
    yield from repeated(config)
    if len(set(section.markers)) < len(section.markers):
        yield "task.markers", list(section.markers), "has one of them twice", "Give four texts that differ."
    if section.no_relation is not None and section.labels is not None and section.no_relation not in section.labels:
        rule = f"is not one of the labels ({', '.join(section.labels[:8])})"
        yield "task.no_relation", section.no_relation, rule, "Name the label of pairs that are not related."


def _metrics(section: RelationExtractionSection) -> tuple[str, ...]:
    if section.labels is None:
        return ()  # the examples say what is reported of each label
    micro = () if section.no_relation is None else ("micro_f1",)
    return ("validation_loss", "accuracy", "macro_f1", *micro, *class_metrics(section.labels))


TASKS.register(
    "relation_extraction",
    TaskSpec(
        section=RelationExtractionSection,
        task="megatrain.tasks.relation_extraction.task:RelationExtraction",
        trains="finetune",
        read_examples="megatrain.data.examples.relations:read_relations",
        check_rows="megatrain.data.examples.relations:check_rows",
        complete="megatrain.data.examples.relations:with_relations",
        attention="any",
        has_r_drop=lambda section: True,
        issues=_issues,
        metrics=_metrics,
    ),
)
