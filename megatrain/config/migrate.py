"""What older versions of megatrain called a field: an error for who writes it, a rename for a run they left."""

from typing import Any

# Dotted names, old -> new; a list's elements have no part of their own.
RENAMED = {
    "monitor.hang_seconds": "monitor.hang_timeout_seconds",
    "monitor.tensorboard": "monitor.sinks",
    "monitor.log_every_steps": "monitor.log_interval_steps",
    "slurm.signal_lead_seconds": "slurm.signal_before_limit_seconds",
    "slurm.restarts_without_progress": "slurm.max_restarts_without_progress",
    "checkpoint.every_steps": "checkpoint.interval_steps",
    "evaluation.every_steps": "evaluation.interval_steps",
    "schedule.minimum_ratio": "schedule.min_lr_ratio",
    "data.stages": "data.phases",
    "data.shuffle.lanes": "data.shuffle.streams",
    "data.maximum_epochs": "data.max_epochs",
    "finetune.maximum_epochs": "finetune.max_epochs",
    "finetune.prompt_field": "task.prompt_field",
    "finetune.response_field": "task.response_field",
    "finetune.messages_field": "task.messages_field",
    "finetune.special_tokens": "task.special_tokens",
    "finetune.truncation": "task.truncation",
}


def migrated(data: Any) -> Any:
    """The plain data of a run's own config.yaml under today's names; what is up to date stays as it is."""
    for old, new in RENAMED.items():
        *above, key = old.split(".")
        section = data
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and key in section:
            *above, name = new.split(".")
            target = data
            for part in above:
                target = target.setdefault(part, {})
            target.setdefault(name, section.pop(key))
    task = data.setdefault("task", {}) if isinstance(data, dict) and "finetune" in data else None
    if isinstance(task, dict) and task.get("name", "sft") == "sft":
        task.setdefault("train_on", "last_turn")  # of the time when nothing else was learnt of a dialogue
    monitor = data.get("monitor") if isinstance(data, dict) else None
    if isinstance(monitor, dict) and isinstance(monitor.get("sinks"), bool):  # of the time when there was one sink
        monitor["sinks"] = ["tensorboard"] if monitor["sinks"] else []
    schedule = data.get("schedule") if isinstance(data, dict) else None
    if isinstance(schedule, dict) and schedule.get("name") == "constant":
        schedule.pop("min_lr_ratio", None)  # it was written, and not used
    return data
