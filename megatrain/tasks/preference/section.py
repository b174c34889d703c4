"""`task:` of preferences: how a row of the pairs reads, and which loss is of them. Without torch."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Path, Positive
from megatrain.tasks.registry import TaskSection


class PreferenceSection(TaskSection):
    """Two answers to a prompt, of which one is preferred; or of kto answers, each desirable or not."""

    name: Literal["preference"] = "preference"
    loss: Annotated[Literal["dpo", "ipo", "orpo", "kto"], REPORTED] = Field(
        "dpo",
        description="arXiv 2305.18290; 2310.12036; 2403.07691, which needs no reference; 2402.01306, of rated answers",
    )
    beta: Annotated[Positive, REPORTED] = Field(
        0.1,
        description="of dpo, ipo and kto: how far the model may go from where it starts; of orpo: weight of the odds",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5), REPORTED] = Field(
        0.0, description="of dpo: part of the pairs that may be labelled the wrong way round"
    )
    desirable_weight: Annotated[Positive, REPORTED] = Field(
        1.0, description="of kto: factor of the loss of such answers"
    )
    undesirable_weight: Annotated[Positive, REPORTED] = 1.0
    prompt_field: Path = Field("prompt", description="text, or messages; dots name a field within a field")
    chosen_field: Path = Field("chosen", description="text, or messages: the answer, or the dialogue that ends with it")
    rejected_field: Path = "rejected"
    completion_field: Path = Field("completion", description="of kto, which reads pairs as well: one answer")
    label_field: Path = Field("label", description="of kto: whether the answer is desirable, true or false")
    special_tokens: Literal["parse", "text"] = Field(
        "parse", description="text: special tokens that a text spells out, such as <|im_start|>, are characters"
    )
    truncation: Literal["drop", "error"] = Field(
        "drop", description="of what does not fit into a sequence, a pair together: drop them, or refuse them"
    )

    @property
    def needs_reference(self) -> bool:
        return self.loss != "orpo"
