"""Learning from preferences: DPO and its relatives."""

from collections.abc import Iterator
from typing import Any

from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.registry import TASKS, TaskSpec


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    task = config.task
    if task.label_smoothing and task.loss != "dpo":
        yield "task.label_smoothing", task.label_smoothing, f"is of loss dpo, not of {task.loss}", "Leave it out."


TASKS.register(
    "preference",
    TaskSpec(
        section=PreferenceSection,
        task="megatrain.tasks.preference.task:Preference",
        trains="finetune",
        read_examples="megatrain.data.examples.preference_pairs:read_preferences",
        check_rows="megatrain.data.examples.preference_pairs:check_rows",
        issues=_issues,
        metrics=lambda section: ("validation_loss", "validation_reward_margin", "validation_reward_accuracy"),
        whole_sequences=True,
    ),
)
