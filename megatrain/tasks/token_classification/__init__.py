"""Token classification: a tag for each word, such as named entities, on causal models and encoders."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from megatrain.tasks.registry import TASKS, TaskSpec
from megatrain.tasks.token_classification.section import TokenClassificationSection


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    section: TokenClassificationSection = config.task
    twice = [label for label, count in Counter(section.labels or ()).items() if count > 1]
    if twice:
        yield "task.labels", list(section.labels or ()), f"has {twice[0]!r} more than once", "Name each label once."


TASKS.register(
    "token_classification",
    TaskSpec(
        section=TokenClassificationSection,
        task="megatrain.tasks.token_classification.task:TokenClassification",
        trains="finetune",
        read_examples="megatrain.data.examples.tagged_words:read_tagged",
        check_rows="megatrain.data.examples.tagged_words:check_rows",
        complete="megatrain.data.examples.tagged_words:with_tags",
        attention="any",
        issues=_issues,
    ),
)
