"""What a model of `transformers` cannot be in a run, each with the reason. No torch."""

from collections.abc import Iterator
from typing import Any

from megatrain.model.families.transformers.section import TransformersSection

WHOLE = "nothing says how layers of model.family transformers, which are not megatrain's, are split over ranks"
_TASKS = ("pretrain_lm", "sft")


def run_issues(config: Any, section: TransformersSection) -> Iterator[tuple[str, Any, str, str]]:
    """(field, value, rule, fix); what depends on the description is told once there is one."""
    if config.task.name not in _TASKS:
        rule = "needs a head or an attention of megatrain's own, and model.family is transformers"
        yield "task.name", config.task.name, rule, f"Take {' or '.join(_TASKS)}, or a base of another family."
    if config.training.precision == "fp8":
        rule = "is of linear layers that megatrain's table knows, and model.family is transformers"
        yield "training.precision", "fp8", rule, "Try bf16."
    for name in ("adapter", "train_layers"):
        if (value := getattr(getattr(config, "finetune", None), name, None)) is not None:
            rule = "trains a part of layers that megatrain's table knows, and model.family is transformers"
            yield f"finetune.{name}", value, rule, "Leave it out."
    if getattr(config.evaluation, "generate", None) is not None:
        rule = "writes with a key-value cache of megatrain's own attention, and model.family is transformers"
        yield "evaluation.generate", True, rule, "Leave it out, and generate from an export."
    if section.description is None or section.description.mixes is None:
        return
    why = f"documents of a sequence would see each other, for {section.description.mixes}"
    if not hasattr(config, "data"):
        fix = "Take a base of another family."
        yield "task.name", config.task.name, f"packs examples into sequences, and {why}", fix
    elif not config.data.attend_across_documents:
        fix = "If they may, set it to true."
        yield "data.attend_across_documents", False, why, fix
