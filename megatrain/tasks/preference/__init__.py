"""Learning from preferences: DPO and its relatives."""

from collections.abc import Iterator
from typing import Any

from megatrain.tasks.preference.section import PreferenceSection
from megatrain.tasks.registry import TASKS, TaskSpec


def _issues(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    task = config.task
    if task.label_smoothing and task.loss != "dpo":
        yield "task.label_smoothing", task.label_smoothing, f"is of loss dpo, not of {task.loss}", "Leave it out."
    for name in ("desirable_weight", "undesirable_weight"):
        if getattr(task, name) != 1 and task.loss != "kto":
            yield f"task.{name}", getattr(task, name), f"is of loss kto, not of {task.loss}", "Leave it out."


def _metrics(section: Any) -> tuple[str, ...]:
    of_kto = ("validation_reward_desirable", "validation_reward_undesirable", "validation_kl")
    return (
        "validation_loss",
        "validation_reward_margin",
        *(of_kto if section.loss == "kto" else ("validation_reward_accuracy",)),
    )


TASKS.register(
    "preference",
    TaskSpec(
        section=PreferenceSection,
        task="megatrain.tasks.preference.of_loss:preference_task",
        trains="finetune",
        read_examples="megatrain.data.examples.rated_answers:read_preferences_of_loss",
        check_rows="megatrain.data.examples.rated_answers:check_rows_of_loss",
        issues=_issues,
        metrics=_metrics,
        whole_sequences=True,
    ),
)
