"""`task:` of sequence classification: how a row of the examples reads. Without torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Path
from megatrain.tasks.class_weights import ClassWeights
from megatrain.tasks.registry import TaskSection


def _as_text(value: Any) -> Any:
    """0 is a number to YAML; true and false stay what they are, and are refused: their writer may have meant yes."""
    return str(value) if type(value) is int else value


def _keys_as_text(value: Any) -> Any:
    return {_as_text(key): weight for key, weight in value.items()} if isinstance(value, dict) else value


Label = Annotated[str, BeforeValidator(_as_text), Field(min_length=1, max_length=1000)]
Problem = Literal["single_label", "multi_label", "regression"]
NUMBER = "LABEL_0"  # transformers' name for the only output of a regression


class SequenceClassificationSection(TaskSection):
    """One label for each text, or pair of texts; several; or a number."""

    name: Literal["sequence_classification"] = "sequence_classification"
    problem: Problem = Field(
        "single_label",
        description="multi_label: any number of labels for each text, told apart one by one; regression: a number",
    )
    text_field: Path = Field("text", description="dots name a field within a field: data.review")
    text_pair_field: Path | None = Field(None, description="of a second text, such as a hypothesis")
    label_field: Path = Field(
        "label", description="text or a whole number; of multi_label a list of them; of regression a number"
    )
    labels: Annotated[tuple[Label, ...], Field(strict=False, min_length=2, max_length=10_000)] | None = Field(
        None, description="in the order of the logits; default: those of finetune.train, sorted"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1), REPORTED] = Field(
        0.0, description="part of each target that is spread evenly over the labels"
    )
    class_weights: Annotated[ClassWeights | None, BeforeValidator(_keys_as_text), REPORTED] = Field(
        None,
        description="of single_label: a weight for each label, such as {spam: 4.0}, others 1; or balanced. The loss is "
        "the weighted mean, as that of torch's CrossEntropyLoss",
    )
    end_token: bool = Field(
        False,
        description="of causal models: an end of text behind each example, which then carries the label. Who uses the "
        "model has to add it as well: transformers' tokenizers mostly do not",
    )
    truncation: Literal["cut", "drop", "error"] = Field(
        "cut", description="of examples longer than a sequence: cut the text's end, drop them, or refuse them"
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return (NUMBER,) if self.problem == "regression" else self.labels or ()

    @property
    def problem_type(self) -> str:
        return self.problem if self.problem == "regression" else f"{self.problem}_classification"
