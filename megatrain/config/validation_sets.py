"""Validation data as one set without a name, or as several that have names."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from megatrain.base.types import Name

T = TypeVar("T")
UNNAMED = ""
_TAKEN = ("train", "validation", "precision", "recall", "f1")  # splits of `evaluate`, and kinds of metrics of a class


def _free(name: str) -> str:
    if name in _TAKEN:
        raise ValueError(f"cannot be the name of a set: {', '.join(_TAKEN)} are taken")
    return name


SetName = Annotated[Name, AfterValidator(_free)]
Several = Annotated[tuple[T, ...], Field(strict=False)]
# a list, or a mapping from names to lists
ValidationSets = Several[T] | Annotated[dict[SetName, Annotated[Several[T], Field(min_length=1)]], Field(max_length=32)]


def sets_of(given: "tuple[T, ...] | Mapping[str, tuple[T, ...]]") -> dict[str, tuple[T, ...]]:
    """By name; a list has none, and what is empty holds no set."""
    if isinstance(given, Mapping):
        return dict(given)
    return {UNNAMED: given} if given else {}


def field_of_set(section: str, name: str) -> str:
    """Its name in a configuration: "finetune.validation", "data.validation.web"."""
    return f"{section}.validation.{name}" if name else f"{section}.validation"


def metric_of_set(name: str, metric: str) -> str:
    """Under which the metric of a set is reported."""
    return f"{name}/{metric}" if name else metric
