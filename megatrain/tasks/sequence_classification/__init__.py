"""Sequence classification: one label for each text, on causal models and encoders."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    section: SequenceClassificationSection = config.task
    twice = [label for label, count in Counter(section.labels or ()).items() if count > 1]
    if twice:
        yield "task.labels", list(section.labels or ()), f"has {twice[0]!r} more than once", "Name each label once."
    if section.end_token and config.model is not None and not config.model.is_causal:
        rule = f"is of causal models, and model.family {config.model.family} is an encoder"
        yield "task.end_token", True, rule, "Leave it out: an encoder's label is at the first token."


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
        issues=_issues,
    ),
)
