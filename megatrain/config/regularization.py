"""Rules of what disturbs a training, and what that adds to its passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatrain.config.runs import Config
from megatrain.model.architecture import FAMILIES, ModelSection

Issue = tuple[str, Any, str, str]  # field, value, rule, fix


@dataclass(frozen=True, slots=True)
class Passes:
    """What regularisation adds to the passes of a micro-batch.

    Attributes:
        dropout: whether blocks draw random numbers.
    """

    dropout: bool = False


def passes_of(config: Config) -> Passes:
    return Passes(dropout=config.training.dropout > 0)


def regularization_issues(config: Config, model: ModelSection) -> Iterator[Issue]:
    """What depends on the model that is trained."""
    training = config.training
    if training.dropout and not FAMILIES.get(model.family).residual:
        fitting = ", ".join(name for name, family in FAMILIES if family.residual)
        rule = f"model.family {model.family} does not say which layers add to its residual stream"
        yield "training.dropout", training.dropout, rule, f"Families that do: {fitting}."
