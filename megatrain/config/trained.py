"""Rules of a run that trains a part of its model: an adapter, or the top layers."""

from collections.abc import Iterator
from typing import Any

from megatrain.adapters.registry import ADAPTERS
from megatrain.config.runs import Config, FinetuneConfig
from megatrain.model.architecture import ModelSection, rows
from megatrain.model.trained import is_linear
from megatrain.optim.registry import OPTIMIZERS

Issue = tuple[str, Any, str, str]  # field, value, rule, fix


def part_issues(config: Config) -> Iterator[Issue]:
    """What does not depend on the base."""
    finetune = config.finetune if isinstance(config, FinetuneConfig) else None
    adapter = finetune.adapter if finetune else None
    layers = finetune.train_layers if finetune else None
    if config.model is not None:
        for name, said in (("adapter", adapter), ("train_layers", layers)):
            if (value := getattr(config.model, name)) not in (None, said):
                yield f"model.{name}", value, f"is what finetune.{name} says", "Leave it out."
    if adapter is None and layers is None:
        return
    if adapter is not None and layers is not None:
        yield "finetune.train_layers", layers, "an adapter trains no layers of the base", "Give one of the two."
    field, what = ("finetune.adapter", "an adapter") if adapter is not None else ("finetune.train_layers", "top layers")
    if OPTIMIZERS.get(config.optimizer.name).matrices is not None:
        rule = f"updates whole hidden matrices, and has not been shown to train {what} ({field})"
        yield "optimizer.name", config.optimizer.name, rule, "Try adamw."
    if config.training.precision == "fp8":
        rule = f"layers that multiply in fp8 train their own weights, and not {what} ({field})"
        yield "training.precision", "fp8", rule, "Try bf16."


def base_issues(config: Config, model: ModelSection) -> Iterator[Issue]:
    """What depends on the sizes and names of the base."""
    if not isinstance(config, FinetuneConfig):
        return
    layers, adapter = config.finetune.train_layers, config.finetune.adapter
    if layers is not None and layers > model.num_hidden_layers:
        rule = f"is more than the base has ({model.num_hidden_layers})"
        yield "finetune.train_layers", layers, rule, f"At most {model.num_hidden_layers}."
    if adapter is None:
        return
    linear = tuple(row for row in rows(model.merged) if is_linear(row))
    for name, value, rule, fix in ADAPTERS.get(adapter.name).issues(adapter, linear):
        yield f"finetune.adapter.{name}", value, rule, fix
