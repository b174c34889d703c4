"""`task:` of token classification: how a row of the examples reads. Without torch."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Path
from megatrain.tasks.registry import TaskSection

_Tag = Annotated[str, Field(min_length=1, max_length=1000)]


class TokenClassificationSection(TaskSection):
    """A tag for each word, such as named entities in IOB2: B-PER, I-PER, O."""

    name: Literal["token_classification"] = "token_classification"
    tokens_field: Path = Field("tokens", description="a list of words; dots name a field within a field")
    tags_field: Path = Field("tags", description="a list of as many tags")
    labels: Annotated[tuple[_Tag, ...], Field(strict=False, min_length=2, max_length=10_000)] | None = Field(
        None, description="the tags, in the order of the logits; default: those of finetune.train, sorted"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1), REPORTED] = Field(
        0.0, description="part of each target that is spread evenly over the labels"
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut the end, drop them, or refuse them"
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels or ()

    @property
    def classifies(self) -> Literal["sequence", "token", "span"]:
        return "token"
