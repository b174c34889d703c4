"""`task:` of extractive question answering: how a row of the examples reads. Without torch."""

from typing import Annotated, Literal

from pydantic import Field

from megatrain.base.section import REPORTED
from megatrain.base.types import Count, NonNegative, Path
from megatrain.tasks.registry import TaskSection


class QuestionAnsweringSection(TaskSection):
    """The first and the last token of an answer within a context, as SQuAD has it."""

    name: Literal["question_answering"] = "question_answering"
    question_field: Path = Field("question", description="dots name a field within a field: data.question")
    context_field: Path = "context"
    answers_field: Path = Field(
        "answers", description="{text: […], answer_start: […]}, in characters; or a list of {text, answer_start}"
    )
    stride: NonNegative = Field(
        128, le=10**6, description="tokens that a window of a long context shares with the one before it"
    )
    unanswerable: bool = Field(
        False, description="rows may have no answer, as in SQuAD 2: the first token of the example then is the answer"
    )
    longest_answer: Annotated[Count, REPORTED] = Field(
        30, le=1000, description="tokens; an evaluation looks at no longer ones"
    )

    @property
    def classes(self) -> tuple[str, ...]:
        return ("start", "end")

    @property
    def classifies(self) -> Literal["sequence", "token", "span"]:
        return "span"
