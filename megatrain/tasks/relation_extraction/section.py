"""`task:` of relation extraction: how a row of the examples reads. Without torch."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Path
from megatrain.tasks.registry import TaskSection

_Text = Annotated[str, Field(min_length=1, max_length=1000)]
_Marker = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\S+$")]


class RelationExtractionSection(TaskSection):
    """The relation of two entities, which markers in the text surround (arXiv 1906.03158)."""

    name: Literal["relation_extraction"] = "relation_extraction"
    tokens_field: Path = Field("tokens", description="a list of words, whose entities are given in words")
    text_field: Path = Field("text", description="of rows without words: entities are given in characters")
    head_field: Path = Field("head", description="[begin, end], without the end; or {start: …, end: …}")
    tail_field: Path = Field("tail", description="likewise, of the other entity")
    label_field: Path = Field("relation", description="a text")
    labels: Annotated[tuple[_Text, ...], Field(strict=False, min_length=2, max_length=10_000)] | None = Field(
        None, description="the relations, in the order of the logits; default: those of finetune.train, sorted"
    )
    no_relation: Annotated[_Text | None, REPORTED] = Field(
        None, description="the label of pairs that are not related: a micro F1 of the others is then reported"
    )
    markers: Annotated[tuple[_Marker, _Marker, _Marker, _Marker], Field(strict=False)] = Field(
        ("[E1]", "[/E1]", "[E2]", "[/E2]"),
        description="around head and tail, with spaces beside them; tokens of their own where the tokenizer has them",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1), REPORTED] = Field(
        0.0, description="part of each target that is spread evenly over the labels"
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut around both entities, drop them, or refuse them"
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels or ()

    @property
    def classifies(self) -> Literal["sequence", "token", "span"]:
        return "token"
